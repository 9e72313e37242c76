"""Whole sets: on one process those of the loader, on several ranks every readable image once and in order."""

import numpy as np
import pytest
import ranks
import torch
from picture_files import noise

from iwm.data import loader, shares
from iwm.data.image_sets import Subset
from iwm.data.sources import open_pictures
from iwm.data.splits import draw_rows
from iwm.runtime import distributed
from iwm.runtime.errors import UserError

SIZE, AREA = 8, (0.3, 1.0)


def on_a_rank(folder: str) -> None:
    images = open_pictures(f"{folder}/pictures", SIZE)
    numbers = np.arange(len(images)) + 5
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        pixels, kept = shares.load_all(images, SIZE)
        whole, crops, same = shares.load_with_crops(images, SIZE, AREA, 0, numbers)
        own = [rows for _, rows in shares.load_chunks(images, SIZE, 2)]
        few, _ = shares.load_all(Subset(images, np.arange(1)), SIZE)
        assert len(few) == 1
        with pytest.raises(UserError, match="can be decoded"):
            shares.load_all(Subset(images, np.array([1, 4])), SIZE)
    values = {"pixels": pixels, "kept": kept, "whole": whole, "crops": crops, "same": same, "own": np.concatenate(own)}
    torch.save({name: torch.as_tensor(value) for name, value in values.items()}, f"{folder}/{where.rank}.pt")


def test_two_ranks_get_every_readable_image_in_order(tmp_path):
    noise(tmp_path / "pictures", 7, broken=(1, 4))
    both = ranks.start(2, tmp_path, on_a_rank, str(tmp_path))
    assert both.wait() == [0, 0], both.texts
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    images = open_pictures(str(tmp_path / "pictures"), SIZE)
    pixels, kept = loader.load_all(images, SIZE)
    _, crops, _ = loader.load_with_crops(images, SIZE, AREA, 0, np.arange(7) + 5)
    for values in (first, second):
        assert values["kept"].tolist() == values["same"].tolist() == kept.tolist() == [0, 2, 3, 5, 6]
        assert torch.equal(values["pixels"], pixels)
        assert torch.equal(values["whole"], pixels)
        assert torch.equal(values["crops"], crops)
    assert [*first["own"].tolist(), *second["own"].tolist()] == [0, 2, 3, 5, 6]


def test_one_process_reads_as_the_loader_does(tmp_path):
    images = open_pictures(str(noise(tmp_path, 3, broken=(0,))), SIZE)
    assert torch.equal(shares.load_all(images, SIZE)[0], loader.load_all(images, SIZE)[0])
    [(pixels, kept)] = shares.load_chunks(images, SIZE, 9)
    assert (len(pixels), kept.tolist()) == (2, [1, 2])


def test_a_draw_is_named_by_its_places_in_the_set(tmp_path):
    images = open_pictures(str(noise(tmp_path, 9, broken=(2, 5))), SIZE)
    pixels, rows = shares.load_draw(images, 6, SIZE, 3)
    wanted = [row for row in draw_rows(6, 9, 3) if row not in (2, 5)]
    assert rows.tolist() == wanted
    assert torch.equal(pixels, loader.load_all(Subset(images, np.array(wanted)), SIZE)[0])
