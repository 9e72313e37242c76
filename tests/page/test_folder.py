"""A folder is searched for what the model imagines, and without the image itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import SPACE, Oracle
from PIL import Image
from planted_page import tiny_world

from iwm.page.folder import Folder
from iwm.page.pictures import Picture
from iwm.page.sliders import read_action
from iwm.runtime.errors import UserError

SIZE = 16


def folder_of(path: Path, count: int = 30) -> Path:
    """Plain pictures of four colours, each at rising brightness; their names are colour and brightness."""
    for number in range(count):
        tint, level = number % 4, 60 + 170 * number // count
        colour = tuple(level if channel == tint else level // 2 for channel in range(3))
        Image.new("RGB", (SIZE, SIZE), colour).save(path / f"{tint}-{level:03}.png")
    return path


def opened(path: Path, most: int = 100) -> Folder:
    folder = Folder(Oracle(size=SIZE), str(path), most, 0)
    while not folder.complete:
        folder.step()
    return folder


def test_darker_finds_darker_and_brighter_brighter(tmp_path: Path) -> None:
    folder = opened(folder_of(tmp_path, 80))
    place = folder.names.index("1-147.png")
    picture = folder.get(f"f{place}")
    assert picture is not None
    for change, sign in ((-0.3, -1), (0.3, 1)):
        answer = folder.search(f"f{place}", picture, read_action(SPACE, {"brightness": change}))
        assert np.sign(answer["brightness"]) == sign
        shifts = [hit["brightness"] for hit in answer["nearest"]]
        assert np.mean(shifts) * sign > 0.05, "of the images found, not of the question"
        assert abs(np.mean([hit["brightness"] for hit in answer["unchanged"]])) < abs(np.mean(shifts)) - 0.02
        assert {hit["name"][0] for hit in answer["nearest"][:4]} == {"1"}, "the colour stays"
        assert "1-147.png" not in [hit["name"] for hit in answer["nearest"] + answer["unchanged"]]
        assert (answer["searched"], answer["total"], len(answer["nearest"])) == (80, 80, 8)
        scores = [hit["score"] for hit in answer["nearest"]]
        assert scores == sorted(scores, reverse=True)


def test_an_uploaded_image_is_searched_with_too(tmp_path: Path) -> None:
    folder = opened(folder_of(tmp_path))
    answer = folder.search("u123", Picture(folder.pixels[7]), read_action(SPACE, {}))
    assert answer["nearest"][0]["name"] == folder.names[7]


def test_broken_images_and_more_than_are_wanted_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, 12)
    (tmp_path / "zz.png").write_bytes(b"no image")
    folder = opened(tmp_path)
    assert (folder.total, folder.ready, len(folder.pixels)) == (12, 12, 12)
    few = opened(tmp_path, most=5)
    assert few.ready <= 5


def test_it_is_searchable_before_all_is_encoded(tmp_path: Path) -> None:
    folder = Folder(tiny_world(), str(folder_of(tmp_path, 100)), 100, 0)
    picture = folder.get("f0")
    assert picture is not None
    answer = folder.search("f0", picture, torch.zeros(7))
    assert answer["searched"] == folder.ready < answer["total"] == 100


def test_one_image_is_too_few_to_search(tmp_path: Path) -> None:
    folder = Folder(tiny_world(), str(folder_of(tmp_path, 12)), 1, 0)
    picture = folder.get("f0")
    assert picture is not None
    with pytest.raises(UserError, match="holds a single image, too few to search"):
        folder.search("f0", picture, read_action(SPACE, {}))


def test_held_out_images_come_first(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 6)):
        (tmp_path / split).mkdir()
        for number in range(count):
            Image.new("RGB", (SIZE, SIZE), (number * 9, 0, 0)).save(tmp_path / split / f"{split}{number}.png")
    assert {name[:3] for name in opened(tmp_path).names[:6]} == {"val"}


@pytest.mark.parametrize("key", ["f99", "f-1", "x1", "", "f", "f²", "f" + "9" * 5000])
def test_a_key_of_no_image_is_none(key: str, tmp_path: Path) -> None:
    assert opened(folder_of(tmp_path, 12)).get(key) is None
