"""Sources, their splits and labels."""

import itertools
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.planted import corners
from picture_files import write, zipped
from PIL import Image

from iwm.data import file_index, samples
from iwm.data.image_sets import require_labels
from iwm.data.sources import labelled_splits, open_images, open_pictures, open_splits, same_names, source_identity
from iwm.runtime.errors import UserError
from iwm.runtime.files import mark_output


@pytest.fixture(autouse=True)
def _every_note_is_said_anew(monkeypatch):
    monkeypatch.setattr(file_index, "_sentences", set())


def test_flat_folder_of_mixed_formats(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", "d.bmp", "e.gif", "f.tiff", "g.ppm"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("")
    write(tmp_path / "__MACOSX" / "a.png")
    opened = open_images(str(tmp_path), "all")
    assert len(opened) == 7
    assert opened.path(0).endswith("a.png")
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


def test_a_class_without_a_training_image_is_named(tmp_path):
    for path in ("train/cat", "train/dog", "val/cat", "val/Dog"):
        write(tmp_path / path / "1.png")
    with pytest.raises(UserError, match=r"Class 'Dog' .* no training image; .* \(training has 'dog'\)"):
        labelled_splits(str(tmp_path))
    assert open_splits(str(tmp_path))[0].classes == ("cat", "dog", "Dog")  # no measure without labels needs them alike
    write(tmp_path / "flat" / "1.png")
    assert len(open_splits(str(tmp_path), str(tmp_path / "flat"))[1]) == 1
    with pytest.raises(UserError, match="'flat' has no labels"):
        labelled_splits(str(tmp_path), str(tmp_path / "flat"))


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "other source"])
def test_validation_may_lack_a_class(tmp_path, form, caplog):
    root = tmp_path / "set"
    for path in ("train/ant", "train/bee", "train/cat", "val/ant", "val/cat"):
        write(root / path / "1.png")
    data, val = str(root), ""
    if form == "zip":
        data = str(zipped(root, tmp_path / "set.zip"))
    elif form == "npz":
        data = str(tmp_path / "set.npz")
        pixels = np.zeros((3, 4, 4, 3), np.uint8)
        np.savez(data, images=pixels, labels=["ant", "bee", "cat"], val_images=pixels[:2], val_labels=["ant", "cat"])
    elif form == "other source":
        data, val = str(root / "train"), str(root / "val")
    splits = labelled_splits(data, val)
    assert splits.classes == ("ant", "bee", "cat")
    assert require_labels(splits.train)[1].tolist() == [0, 1, 2]
    assert require_labels(splits.val)[1].tolist() == [0, 2]
    assert "1 of 3 classes have no validation image: bee" in caplog.text


def test_a_flat_test_folder_is_no_validation(tmp_path, caplog):
    for index in range(10):
        write(tmp_path / "kaggle" / "train" / "ab"[index % 2] / f"{index}.png")
    write(tmp_path / "kaggle" / "test" / "1.png")
    splits = labelled_splits(str(tmp_path / "kaggle"))
    assert (len(splits.train), len(splits.val)) == (9, 1)
    assert "test/ has no class folders as train/ has, so its 1 images are left out" in caplog.text
    held = {splits.val.path(0)}
    trained_on = open_images(str(tmp_path / "kaggle"), "train")
    assert held.isdisjoint(trained_on.path(index) for index in range(len(trained_on)))


def test_images_without_a_label_are_for_pretraining(tmp_path, caplog):
    for index in range(4):
        write(tmp_path / "stl" / "train" / "ab"[index % 2] / f"{index}.png")
        write(tmp_path / "stl" / "test" / "ab"[index % 2] / f"{index}.png")
        write(tmp_path / "stl" / "unlabeled" / f"{index}.png")
    write(tmp_path / "stl" / "train" / "stray.png")
    train = open_images(str(tmp_path / "stl"))
    assert sorted(require_labels(train)[1].tolist()) == [-1] * 5 + [0, 0, 1, 1]
    assert len(labelled_splits(str(tmp_path / "stl")).train) == 4
    assert "5 of 9 images (train) have no label" in caplog.text


def test_what_iwm_wrote_is_no_data(tmp_path, caplog):
    for path in ("pets/cat/1.png", "pets/dog/2.png", "pets/runs/mine/gallery.png", "pets/runs/mine/eval/a.png"):
        write(tmp_path / path)
    mark_output(tmp_path / "pets" / "runs" / "mine")
    archive = zipped(tmp_path / "pets", tmp_path / "pets.zip", "top/")
    for source in (tmp_path / "pets", archive):
        opened = open_images(str(source), "all")
        assert (len(opened), opened.classes) == (2, ("cat", "dog"))
        assert "runs/mine/ was written by iwm and left out" in caplog.text
    assert len(open_images(str(tmp_path / "pets" / "runs" / "mine"), "all")) == 2  # where it is asked for


@pytest.mark.parametrize("prefix", ["pets\\", "./pets/", "/pets/", "pets//"])
def test_archives_of_every_archiver(tmp_path, prefix):
    separator = "\\" if "\\" in prefix else "/"
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"):
            archive.writestr(prefix + path.replace("/", separator), write(tmp_path / "1.png").read_bytes())
    train, val, _ = open_splits(str(tmp_path / "pets.zip"))
    assert (len(train), len(val), train.classes) == (2, 2, ("cat", "dog"))
    assert train.load(0).shape == (3, 8, 8)


def test_a_folder_unpacked_with_backslashes_in_its_names(tmp_path):
    for path in ("train\\cat\\1.png", "train\\dog\\2.png", "val\\cat\\3.png"):
        write(tmp_path / "pets" / path)
    train, val, _ = open_splits(str(tmp_path / "pets"))
    assert (len(train), len(val), train.classes, train.load(0).shape) == (2, 1, ("cat", "dog"), (3, 8, 8))


def deep(folder: Path, values: object, dtype: str, count: int = 3, suffix: str = "png") -> Path:
    """Images of more than 8 bits that rise from the first of the values to the last."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = values  # pyright: ignore[reportGeneralTypeIssues]
    for index in range(count):
        ramp = np.linspace(low, high, 256).reshape(16, 16).astype(dtype)
        Image.fromarray(ramp).save(folder / f"{index}.{suffix}")
    return folder


@pytest.mark.parametrize(
    ("values", "dtype", "suffix", "note"),
    [
        ((0, 65535), "uint16", "png", ""),
        ((0, 4095), "uint16", "png", "from 0 to 4,095"),
        ((0, 1023), "uint16", "tif", "from 0 to 1,023"),
        ((0, 255), "uint16", "png", "from 0 to 255"),
        ((-1000, 3000), "int32", "tif", "from -1,000 to 3,000"),
        ((0, 1), "float32", "tif", ""),
        ((0, 255), "float32", "tif", "from 0 to 255"),
        ((-3, 900), "float32", "tif", "from -3 to 900"),
    ],
)
def test_grey_levels_of_more_than_8_bits_survive(tmp_path, values, dtype, suffix, note, caplog):
    source = deep(tmp_path / "grey", values, dtype, suffix=suffix)
    wanted = np.linspace(0, 255, 256).reshape(16, 16)
    for opened in (
        open_images(str(source), "all"),
        open_pictures(str(source)),
        open_pictures(str(source / f"1.{suffix}")),
        open_images(str(zipped(source, tmp_path / "grey.zip")), "all"),
    ):
        assert np.abs(opened.load(0)[0].numpy() - wanted).max() <= 1
    assert note in caplog.text
    assert bool(note) == ("become black to white" in caplog.text)


def test_the_range_of_a_file_is_that_of_its_source(tmp_path):
    """A dark picture stays dark beside a bright one, in training and alone."""
    source = deep(tmp_path / "grey", (0, 4095), "uint16")
    Image.fromarray(np.full((4, 4), 400, np.uint16)).save(source / "dark.png")
    for opened in (open_pictures(str(source)), open_pictures(str(source / "dark.png"))):
        assert opened.load(len(opened) - 1).float().mean() == pytest.approx(400 / 4095 * 255, abs=1)


def test_the_grey_range_may_be_given(tmp_path):
    source = deep(tmp_path / "ct" / "train", (-1000, 3000), "int32", suffix="tif").parent
    (source / "grey_range.txt").write_text("-160 240")
    for opened in (open_images(str(source), "all"), open_pictures(str(source / "train" / "0.tif"))):
        assert opened.load(0)[0].unique().tolist()[0] == 0
        assert (opened.load(0)[0] == 255).sum() > 150
    (source / "grey_range.txt").write_text("240 -160")
    with pytest.raises(UserError, match="must hold two numbers"):
        open_images(str(source))


def test_types_that_are_not_read_are_counted(tmp_path, caplog):
    for name in ("1.jpg", "2.heic", "3.heic", "4.dcm", "scan", "classes.txt", "notes.md", ".hidden.heic"):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name, "JPEG")
    assert len(open_images(str(tmp_path / "set"), "all")) == 1
    assert "4 files are left out, for their type is not read (2 .heic, 1 .dcm, 1 without a suffix)" in caplog.text


def test_pages_of_an_image_are_said(tmp_path, caplog):
    pages = [Image.new("L", (8, 8), value) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    write(tmp_path / "one.png")
    assert open_images(str(tmp_path), "all").load(1)[0, 0, 0] == 10
    assert "1 of 2 images looked at have several frames or pages" in caplog.text


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
    assert "./sample" in capsys.readouterr().err
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
        ([0, 0, 1, 1], [0, 1, 2, 2], "Class .2. of"),
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


def test_a_comma_in_a_name_makes_no_two_sources(tmp_path, monkeypatch):
    write(tmp_path / "cats, dogs" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert source_identity("cats, dogs") == str(tmp_path / "cats, dogs")
    assert len(open_images("cats, dogs", "all")) == 1
    assert same_names("/was/here/cats, dogs", str(tmp_path / "cats, dogs")), "it has been moved"
    assert not same_names("/was/cats,/was/here/dogs", str(tmp_path / "cats, dogs"))
    write(tmp_path / "dogs" / "1.png")
    assert source_identity("sample, dogs") == f"sample,{tmp_path / 'dogs'}"
    assert not same_names("/was/cats,/was/dogs", "dogs")


@pytest.mark.parametrize("opens", [lambda source: open_images(source), lambda source: open_splits(source)])
def test_what_was_split_is_said(tmp_path, opens):
    write(tmp_path / "dogs" / "1.png")
    with pytest.raises(UserError, match=r"There is no 'cats'; 'sample, cats,.*dogs', .* at its commas into 3 sources"):
        opens(f"sample, cats,{tmp_path / 'dogs'}")
