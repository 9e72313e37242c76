"""Sources, their splits and labels."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.planted import corners
from picture_files import write, zipped

from iwm.data import samples
from iwm.data.image_sets import require_labels
from iwm.data.sources import labelled_splits, open_images, open_pictures, open_splits, source_identity
from iwm.runtime.errors import UserError


def test_flat_folder_of_mixed_formats(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", "d.bmp", "e.gif", "f.tiff", "g.ppm"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("")
    write(tmp_path / "__MACOSX" / "a.png")
    opened = open_images(str(tmp_path), "all")
    assert len(opened) == 7
    assert opened.path(0).endswith("a.png") or opened.path(0).endswith("b.JPG")
    assert opened.classes is None
    assert opened.labels is None
    with pytest.raises(UserError, match="has no labels; put the images of each class into a folder"):
        require_labels(opened)


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder"])
def test_class_folders(tmp_path, form):
    root = tmp_path / "pets"
    for path in ("dog/1.png", "cat/a/2.png", "cat/b/3.png"):
        write(root / path)
    source = root
    if form != "folder":
        source = zipped(root, tmp_path / "pets.ZIP", "top/" if "top" in form else "")
    opened = open_images(str(source), "all")
    classes, labels = require_labels(opened)
    assert opened.name == "pets"
    assert classes == ("cat", "dog")
    assert [classes[label] for label in labels] == ["cat", "cat", "dog"]
    assert [Path(opened.path(i)).name for i in range(3)] == ["2.png", "3.png", "1.png"]
    assert opened.load(0).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["val", "Test", "validation"])
def test_splits_of_the_source(tmp_path, name):
    for split, count in (("Train", 3), (name, 2)):
        for kind, index in itertools.product("ab", range(count)):
            write(tmp_path / "set" / split / kind / f"{index}.png")
    write(tmp_path / "set" / "preview.png")
    source = str(tmp_path / "set")
    assert [len(open_images(source, split)) for split in ("train", "val", "all")] == [6, 4, 10]
    train, val, how = open_splits(source)
    assert (len(train), len(val)) == (6, 4)
    assert (train.split, val.split) == ("train", "val")
    assert how == f"set: train/ and {name.lower()}/"
    assert require_labels(open_images(source, "all"))[1].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_another_source_for_validation(tmp_path):
    for index in range(4):
        write(tmp_path / "one" / f"{index}.png")
        write(tmp_path / "two" / f"{index % 3}.png")
    train, val, how = open_splits(str(tmp_path / "one"), str(tmp_path / "two"))
    assert (len(train), len(val)) == (4, 3)
    assert how == "one for training, two for validation"


def test_different_classes_are_named(tmp_path):
    for path in ("train/cat", "train/dog", "val/cat", "val/dgo"):
        write(tmp_path / path / "1.png")
    with pytest.raises(UserError, match=r"'dog' only in training and 'dgo' only in validation"):
        open_splits(str(tmp_path))
    write(tmp_path / "flat" / "1.png")
    with pytest.raises(UserError, match="class folders or labels and 'flat'"):
        open_splits(str(tmp_path), str(tmp_path / "flat"))


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
        ({"images": np.zeros((2, 4, 4, 3))}, r"is float64 \[2, 4, 4, 3\]; save uint8"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"save uint8 \[n, h, w, 3\]"),
        (
            {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0])},
            "`labels` in .* must be 2 whole numbers",
        ),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, -1])}, "must be 2 whole numbers"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, 2]), "classes": ["a", "b"]}, "0 up to 1"),
        ({"images": np.array([None, 1], dtype=object)}, "not a readable .npz of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, arrays, sentence):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        open_images(str(tmp_path / "bad.npz"))


def test_bad_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.zip").write_text("x")
    (tmp_path / "bad.npz").write_text("x")
    zipped(tmp_path / "empty", tmp_path / "empty.zip")
    write(tmp_path / "one.png")
    for source, sentence in {
        "nowhere": "There is no '.*nowhere'; give a folder",
        "empty": "holds no images",
        "empty.zip": "holds no images",
        "notes.txt": "is not a source of images; give a folder, a .zip or an .npz",
        "one.png": "is not a source of images; give the folder it lies in",
        "bad.zip": "not a readable zip archive",
        "bad.npz": "not a readable .npz",
    }.items():
        with pytest.raises(UserError, match=sentence):
            open_images(str(tmp_path / source))
    with pytest.raises(UserError, match="No images were named"):
        open_images("")
    with pytest.raises(UserError, match="There is no split 'valid'"):
        open_images("sample", "valid")
    (tmp_path / "alone").mkdir()
    write(tmp_path / "alone" / "1.png")
    with pytest.raises(UserError, match="a single image"):
        open_splits(str(tmp_path / "alone"))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "photos" / "1.png")
    assert len(open_images("~/photos", "all")) == 1


def test_links_in_a_loop_end(tmp_path):
    write(tmp_path / "set" / "a" / "1.png")
    write(tmp_path / "elsewhere" / "2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "b")
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "loop")
    opened = open_images(str(tmp_path / "set"), "all")
    assert require_labels(opened)[0] == ("a", "b")
    assert sorted({Path(opened.path(i)).name for i in range(len(opened))}) == ["1.png", "2.png"]


def test_a_folder_called_as_the_embedded_images_does_not_take_their_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sample" / "0.png")
    assert len(open_images(source_identity("sample"))) == len(open_images("sample")) == 800
    assert "./sample" in capsys.readouterr().out
    assert len(open_images(source_identity("./sample"), "all")) == 1


def test_embedded_sources():
    train, val, _ = open_splits("sample-objects", size=32)
    assert (len(train), len(val)) == (10_000, 2_000)
    assert train.classes == val.classes == tuple(samples.sprites())
    scene = samples.scene("val", 7, 32)
    assert np.array_equal(val.load(7).permute(1, 2, 0).numpy(), scene.image)
    assert require_labels(val)[1][7] == scene.label
    assert np.array_equal(open_splits("sample-objects", seed=3, size=32)[1].load(7), val.load(7))
    assert np.array_equal(open_images("sample-objects", "val", seed=3, size=32).load(7), val.load(7))
    photos, others, how = open_splits("sample")
    assert how == "sample: 800 and 119 of the embedded photos"
    assert not {photos.path(i) for i in range(800)} & {others.path(i) for i in range(119)}
    assert photos.load(0).shape == (3, 120, 120)


@pytest.mark.parametrize("archived", [False, True])
def test_validation_folders_alone_are_no_classes(tmp_path, archived):
    folder = tmp_path / "source"
    for split in ("val", "Test"):
        for kind in ("a", "b"):
            write(folder / split / kind / "1.png")
    source = zipped(folder, tmp_path / "source.zip") if archived else folder
    with pytest.raises(UserError, match=r"has val/ and test/ but no train/ folder; add one"):
        open_splits(str(source))
    write(folder / "cat" / "1.png")
    assert open_images(str(folder), "all").classes == ("Test", "cat", "val")


def test_pictures_are_all_there_are_whatever_their_folders_are_called(tmp_path):
    for place in ("train/a/1.png", "val/a/1.png", "test/b/1.png", "2.png", ".hidden/3.png"):
        write(tmp_path / place)
    opened = open_pictures(str(tmp_path))
    assert [Path(opened.path(i)).relative_to(tmp_path).as_posix() for i in range(len(opened))] == [
        "2.png",
        "test/b/1.png",
        "train/a/1.png",
        "val/a/1.png",
    ]
    assert open_pictures(str(tmp_path / "2.png")).load(0).shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"There is no .absent\.png."):
        open_pictures("absent.png")


def classed(path: Path, labels: list[int] | None) -> str:
    arrays: dict[str, Any] = {"images": np.zeros((4, 16, 16, 3), dtype=np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("train", "val", "sentence"),
    [
        (None, None, "has no labels"),
        ([0, 0, 0, 0], [0, 0, 0, 0], "one class"),
        ([0, 0, 1, 1], [0, 1, 2, 2], "class"),
    ],
)
def test_sources_that_cannot_be_probed(tmp_path, train, val, sentence):
    with pytest.raises(UserError, match=sentence):
        labelled_splits(classed(tmp_path / "train.npz", train), classed(tmp_path / "val.npz", val))


def test_images_are_never_both_learned_from_and_asked(tmp_path):
    source = corners(tmp_path)
    for data, val in ((source[0], source[0]), (f"{source[0]},{source[1]}", source[1])):
        with pytest.raises(UserError, match="the very images that are trained on"):
            labelled_splits(data, val)
    arrays = np.load(source[0])
    own = {f"val_{name}": arrays[name][:9] for name in arrays.files}
    np.savez(tmp_path / "own.npz", **arrays, **own)
    splits = labelled_splits(str(tmp_path / "own.npz"), str(tmp_path / "own.npz"))
    assert (len(splits.train), len(splits.val)) == (320, 9)


def test_a_path_is_a_source_as_its_text_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, count in (("a, b", 12), ("sample", 13)):
        for index in range(count):
            write(tmp_path / folder / f"{index}.png")
    assert len(open_images(tmp_path / "a, b", "all")) == 12
    assert len(open_images(Path("sample"), "all")) == 13  # a path, not the embedded pictures
