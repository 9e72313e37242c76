"""Hold-outs and seeded choices: which images, evenly over classes, never the same image twice."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import write

from iwm.data import splits
from iwm.data.image_sets import UNLABELLED, Arrays, require_labels
from iwm.data.sources import open_images, open_splits, source_identity
from iwm.runtime.errors import UserError


def test_a_seeded_tenth_is_held_out(tmp_path):
    for kind, index in itertools.product("ab", range(20)):
        write(tmp_path / kind / f"{index}.png")
    source = str(tmp_path)
    train, val, how = open_splits(source, seed=1)
    assert how == f"{tmp_path.name}: a seeded tenth (seed 1) held out"
    assert np.bincount(require_labels(val)[1]).tolist() == [2, 2]
    held_out = {val.path(i) for i in range(4)}
    assert held_out | {train.path(i) for i in range(36)} == {open_images(source, "all").path(i) for i in range(40)}
    assert held_out == {open_images(source, "val", seed=1).path(i) for i in range(4)}
    trained_on = open_images(source, seed=1)  # what pretraining opens: never the tenth that is measured on
    assert {trained_on.path(i) for i in range(len(trained_on))} == {train.path(i) for i in range(36)}
    assert len(open_images(source, "all")) == 40
    other = open_images(source, "val", seed=2)
    assert held_out != {other.path(i) for i in range(4)}


def test_the_record_is_of_the_names_of_what_is_trained_on(tmp_path):
    for index in range(30):
        write(tmp_path / "photos" / f"{index:02}.png")
    write(tmp_path / "whole" / "train" / "0.png")
    write(tmp_path / "whole" / "val" / "0.png")

    def record(*sources):
        return splits.training_record(open_images(",".join(str(tmp_path / name) for name in sources)))

    first = record("photos")
    assert first is not None
    assert first[0] is not None
    assert first[0]["images"] == 30
    assert record("whole") is record("whole", "whole") is None, "nothing is held out by lot"
    assert record("whole", "photos") == [None, *first]
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert record("moved") == first
    held = open_images(str(tmp_path / "moved"), "val").path(0)
    Path(held).rename(held.replace(".png", "-anew.png"))
    assert record("moved") == first, "another image in the tenth was not trained on either"
    write(tmp_path / "moved" / "30.png")
    assert record("moved") != first
    arrays = Arrays(np.zeros((30, 2, 2, 3), dtype=np.uint8), "arrays", "train", "arrays.npz")
    assert splits.hold_out_images(arrays, 0)[0].record == splits.hold_out_images(arrays, 0)[0].record
    assert splits.hold_out_images(arrays, 0)[0].record != splits.hold_out_images(arrays, 1)[0].record


def test_what_is_measured_is_held_out_of_the_training_that_is_measured(tmp_path):
    for index in range(30):
        write(tmp_path / f"{index:02}.png")
    source = str(tmp_path)
    record = splits.training_record(open_images(source))
    assert record is not None
    assert record[0] is not None
    write(tmp_path / "30.png")
    with splits.measuring([splits.Training("runs/mine", source_identity(source), record[0])]):
        for opened in (open_splits, lambda source: open_images(source, "val")):
            with pytest.raises(UserError, match="held 30 images when runs/mine was trained and holds 31 now"):
                opened(source)
        open_images(source)  # as a twin does
        open_images(source, "all")
    open_splits(source)


@pytest.mark.parametrize("others", [5, 30])
def test_the_only_image_of_a_class_is_not_held_out(tmp_path, others):
    write(tmp_path / "a" / "0.png")
    for index in range(others):
        write(tmp_path / "b" / f"{index}.png")
    for seed in range(8):
        train, val, _ = open_splits(str(tmp_path), seed=seed)
        assert np.bincount(require_labels(train)[1]).tolist() == [1, others - len(val)]
        assert len(val) == max(1, others // 10)


def test_the_tenth_is_a_seeded_tenth_of_every_class():
    labels = torch.cat([torch.zeros(100), torch.ones(40), torch.full((1,), 2), torch.full((2,), 3)]).long()
    rest, tenth = splits.tenth_of_each_class(labels, 0)
    assert torch.equal(torch.cat([rest, tenth]).sort().values, torch.arange(143))
    assert torch.bincount(labels[tenth]).tolist() == [10, 4, 0, 1]
    assert torch.equal(splits.tenth_of_each_class(labels, 0)[1], tenth)
    assert not torch.equal(splits.tenth_of_each_class(labels, 1)[1], tenth)


def test_tenths_of_other_numbers_share_no_image():
    labels = torch.cat([torch.zeros(100), torch.ones(46), torch.full((1,), 2), torch.full((3,), 3)]).long()
    parts = [splits.tenth_of_each_class(labels, 0, number) for number in range(5)]
    together = torch.cat([tenth for _, tenth in parts])
    assert len(together.unique()) == len(together) == 5 * 10 + 5 * 5 + 3
    for rest, tenth in parts:
        assert torch.equal(torch.cat([rest, tenth]).sort().values, torch.arange(150))
    assert [int((labels[tenth] == 3).sum()) for _, tenth in parts] == [1, 1, 1, 0, 0]
    assert torch.equal(parts[0][1], splits.tenth_of_each_class(labels, 0)[1])


def test_draw_rows_is_seeded_and_without_repetition():
    chosen = splits.draw_rows(64, 500, 3)
    assert len(set(chosen.tolist())) == 64
    assert (chosen == splits.draw_rows(64, 500, 3)).all()
    assert len(splits.draw_rows(64, 10, 0)) == 10


def test_shuffled_rows_are_the_same_rows_in_random_order():
    shuffled = splits.shuffled_rows(64, 500, 3)
    assert (np.sort(shuffled) == splits.draw_rows(64, 500, 3)).all()
    assert (np.diff(shuffled) < 0).any()


@pytest.mark.parametrize(("count", "held"), [(2, 1), (9, 1), (57, 5)])
def test_a_tenth_of_rows_without_classes(count, held):
    rest, tenth = splits.tenth_of_rows(count, 0)
    assert len(tenth) == held
    assert torch.equal(torch.cat([rest, tenth]).sort().values, torch.arange(count))
    assert torch.equal(splits.tenth_of_rows(count, 0)[1], tenth)


def test_a_share_holds_every_class_in_proportion():
    images = Arrays(np.zeros((80, 2, 2, 3), dtype=np.uint8), "arrays", "train", "arrays.npz")
    images.classes, images.labels = ("a", "b"), np.repeat([0, 1], [20, 60])
    chosen = splits.share_of_each_class(images, 12, 0)
    assert np.bincount(require_labels(chosen)[1]).tolist() == [3, 9]
    assert len(set(chosen.indices.tolist())) == 12
    assert (np.diff(chosen.indices) > 0).all()
    assert (chosen.indices != splits.share_of_each_class(images, 12, 1).indices).any()
    assert len(splits.share_of_each_class(images, 0, 0)) == 80


def test_a_share_leaves_no_class_without_an_image():
    images = Arrays(np.zeros((100, 2, 2, 3), dtype=np.uint8), "arrays", "train", "arrays.npz")
    images.classes = tuple("abcdef")
    images.labels = np.repeat([UNLABELLED, 0, 1, 2, 3, 4, 5], [30, 60, 2, 2, 2, 2, 2])
    chosen = splits.share_of_each_class(images, 10, 0)
    assert len(set(chosen.indices.tolist())) == 10
    assert set(require_labels(chosen)[1].tolist()) >= {0, 1, 2, 3, 4, 5}
    few = splits.share_of_each_class(images, 4, 0)
    assert len(set(require_labels(few)[1].tolist())) == 4, "as many as there is room for"


def test_every_choice_stays_what_it_was():
    """Results are compared with those of other versions: on the same images."""
    labels = np.arange(50) % 3
    assert splits.hold_out_rows(50, "", 0, labels)[1].tolist() == [0, 7, 17, 29, 42]
    assert splits.tenth_of_each_class(torch.from_numpy(labels), 0)[1].tolist() == [8, 11, 22, 24, 34, 39]
    assert splits.tenth_of_rows(50, 0)[1].tolist() == [9, 49, 38, 0, 28]
    assert splits.draw_rows(5, 50, 0).tolist() == [2, 4, 18, 23, 36]
