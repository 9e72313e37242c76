"""Arrays as a source: images of every shape, labels of every kind."""

from typing import Any

import numpy as np
import pytest

from iwm.data import file_index
from iwm.data.arrays import read_arrays
from iwm.data.image_sets import require_labels
from iwm.data.sources import labelled_splits, open_images, open_splits
from iwm.runtime.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([1, 2, 3, 1, 2, 3], ("1", "2", "3"), [0, 1, 2, 0, 1, 2]),
        ([0, 255, 7, 7, 255, 0], ("0", "7", "255"), [0, 2, 1, 1, 2, 0]),
        ([[0], [1], [0], [1], [0], [1]], ("0", "1"), [0, 1] * 3),
        (["dog", "cat", "dog", "cat", "", "cat"], ("cat", "dog"), [1, 0, 1, 0, -1, 0]),
        ([0, -1, 1, -1, 1, 0], ("0", "1"), [0, -1, 1, -1, 1, 0]),
        ([0.0, np.nan, 1.0, 1.0, 1.0, 0.0], ("0", "1"), [0, -1, 1, 1, 1, 0]),
        ([True, False, True, False, True, False], ("0", "1"), [1, 0] * 3),
        (np.eye(3)[[0, 2, 1, 1, 2, 0]], ("0", "1", "2"), [0, 2, 1, 1, 2, 0]),
    ],
)
def test_classes_are_the_labels_that_occur(tmp_path, labels, classes, numbers):
    path = tmp_path / "set.npz"
    np.savez(path, images=PIXELS, labels=labels, val_images=PIXELS, val_labels=labels)
    opened = open_images(str(path))
    assert (opened.classes, require_labels(opened)[1].tolist()) == (classes, numbers)
    splits = labelled_splits(str(path))
    assert require_labels(splits.train)[1].tolist() == [number for number in numbers if number >= 0]


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (PIXELS[..., 0], PIXELS[..., :1].repeat(3, axis=3)),
        (PIXELS[..., :1], PIXELS[..., :1].repeat(3, axis=3)),
        (np.concatenate([PIXELS, np.full((6, 5, 4, 1), 255, np.uint8)], axis=3), PIXELS),
        (np.concatenate([PIXELS, np.zeros((6, 5, 4, 1), np.uint8)], axis=3), np.full_like(PIXELS, 255)),
    ],
)
def test_one_channel_and_transparency(tmp_path, images, wanted):
    np.savez(tmp_path / "set.npz", images=images)
    assert np.array_equal(read_arrays(tmp_path / "set.npz")["images"], wanted)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_the_names_of_others(tmp_path, names):
    arrays: dict[str, Any] = dict(
        zip(names, (PIXELS, np.arange(6)[:, None] % 2, PIXELS[:2], np.arange(2)), strict=True)
    )
    np.savez(tmp_path / "set.npz", **arrays)
    train, val, _ = open_splits(str(tmp_path / "set.npz"))
    assert (len(train), len(val)) == (6, 2)
    assert require_labels(val)[1].tolist() == [0, 1]


def test_medmnist_has_three_splits(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(file_index, "_sentences", set())
    arrays: dict[str, Any] = {
        f"{split}_images": PIXELS[:, :, :, 0][:count] for split, count in (("train", 6), ("val", 3), ("test", 2))
    }
    arrays |= {f"{split}_labels": np.full((count, 1), k) for k, (split, count) in enumerate((("test", 2), ("val", 3)))}
    np.savez(tmp_path / "med.npz", **arrays, train_labels=np.arange(6)[:, None] % 2)
    train, val, _ = open_splits(str(tmp_path / "med.npz"))
    assert (len(train), len(val), require_labels(val)[1].tolist()) == (6, 3, [1, 1, 1])
    assert "`test_images` (2) are left out" in caplog.text


def test_npz(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    path = tmp_path / "arrays.npz"
    np.savez(path, images=pixels, labels=[0, 1, 0, 1, 1], classes=["x", "y"], val_images=pixels[:2], val_labels=[1, 0])
    train, val, how = open_splits(str(path))
    assert how == "arrays: images and val_images"
    assert train.name == "arrays"
    assert require_labels(train)[0] == ("x", "y")
    assert require_labels(val)[1].tolist() == [1, 0]
    assert np.array_equal(train.load(3).permute(1, 2, 0).numpy(), pixels[3])
    assert len(open_images(str(path), "all")) == 7


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pictures": np.zeros(3)}, "has no array `images`"),
        ({"images": np.zeros((2, 4, 4, 3))}, r"is float64 \[2, 4, 4, 3\]; scale the values"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, r"move the channels to the end"),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0])},
            "give 2 whole numbers or words",
        ),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, -2])}, "holds -2; labels are 0 or more"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0.5, 1])}, "give 2 whole numbers or words"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.eye(3)[[[0, 1], [1, 2]]].sum(1)}, "several classes"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, 2]), "classes": ["a", "b"]}, "0 to 1"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": ["a", "c"], "classes": ["a", "b"]}, "holds 'c'"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0, 1], "classes": ["a", "a"]}, "every class once"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint16)}, r"is uint16 .*; scale the values to 0..255"),
        ({"images": np.zeros((2, 4, 4, 8), np.uint8)}, "of more channels choose three"),
        ({"images": np.array([None, 1], dtype=object)}, "not a readable .npz of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, arrays, sentence):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        open_images(str(tmp_path / "bad.npz"))
