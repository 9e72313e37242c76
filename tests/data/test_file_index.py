"""Which files of a source are pictures, and which split each belongs to."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.data import file_index
from iwm.runtime.errors import UserError

ROOT = Path("pets")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def below(files: list[file_index.Named] | None) -> list[str] | None:
    """What lies below the split of every file, in order."""
    return None if files is None else ["/".join(parts) for _, parts in files]


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("pets", "pets"),
        ("my pets, 2", "my-pets-2"),
        ("pets.v2", "pets.v2"),
        ("pets.v2.zip", "pets.v2"),
        ("pets.npz", "pets"),
        ("..pets..", "pets"),
        ("(?)", "images"),
    ],
)
def test_a_source_has_a_short_name_that_makes_a_file_name(tmp_path, name, short):
    if name.endswith((".zip", ".npz")):
        touch(tmp_path, name)
    else:
        (tmp_path / name).mkdir()
    assert file_index.locate(str(tmp_path / name)) == (tmp_path / name, short)


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert file_index.locate(".") == (Path("."), "pets")


def test_every_file_of_a_folder_and_of_an_archive_is_listed(tmp_path):
    touch(tmp_path / "set", "1.png", "a/2.png", "a/b/c/3.txt", ".hidden/4.png", "e/.5.png")
    (tmp_path / "set" / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "set.ZIP", "w") as archive:
        for path in (tmp_path / "set").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "set"))
    wanted = {str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert sorted(file_index.file_names(tmp_path / "set")) == sorted(wanted)
    assert {name for name in file_index.file_names(tmp_path / "set.ZIP") if not name.endswith("/")} == wanted


def test_links_are_followed_and_a_loop_ends(tmp_path):
    touch(tmp_path, "set/a/1.png", "elsewhere/2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "b")
    os.symlink(tmp_path / "elsewhere" / "2.png", tmp_path / "set" / "3.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "loop")
    found = file_index.file_names(tmp_path / "set")
    assert len(found) < 12
    assert {"3.png", "a/1.png", "b/2.png"} <= set(found)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("1.PNG", "is not a source of images; give the folder it lies in"),
        ("notes.txt", "is not a source of images; give a folder, a .zip or an .npz"),
        ("broken.zip", "is not a readable zip archive"),
    ],
)
def test_what_is_no_source_is_said(tmp_path, name, sentence):
    touch(tmp_path, name)
    with pytest.raises(UserError, match=sentence):
        file_index.file_names(tmp_path / name)


# ---- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pnm"])
def test_every_documented_type_is_a_picture_in_any_case(kind):
    names = [f"b.{kind}", f"a/c.{kind.upper()}", f"a.{kind.title()}", f"{kind}.txt", f"x.{kind}.part", f"x{kind}"]
    assert file_index.pictures_among(ROOT, names) == [f"a.{kind.title()}", f"a/c.{kind.upper()}", f"b.{kind}"]


@pytest.mark.parametrize(
    "name", [".1.png", ".git/1.png", "a/.cache/b/1.png", "a/._1.png", "__MACOSX/1.png", "a/__MACOSX/b/1.png"]
)
def test_hidden_files_and_what_macos_leaves_are_no_pictures(name):
    assert file_index.pictures_among(ROOT, [name, "a.b/1.png", "MACOSX/1.png"]) == ["MACOSX/1.png", "a.b/1.png"]
    with pytest.raises(UserError, match="'pets' holds no images; known file types are jpg, jpeg, png, webp"):
        file_index.pictures_among(ROOT, [name])


# ---- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("valid", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_folders_of_the_splits_in_any_case(train, valid, case):
    names = [f"{case(train)}/cat/1.png", f"{case(train)}/2.png", f"{case(valid)}/cat/3.png", "cat/4.png", "5.png"]
    for order in (names, names[::-1]):
        first, second, how = file_index.split_files(ROOT, order)
        assert below(first) == ["2.png", "cat/1.png"]
        assert below(second) == ["cat/3.png"]
        assert {path for path, _ in [*first, *(second or [])]} == set(names[:3])
        assert how == f"{train}/ and {valid}/"


@pytest.mark.parametrize(
    ("names", "train", "valid", "how"),
    [
        # of several folders for a split the first of the list is taken
        ("train/1.png training/2.png val/3.png", "1.png", "3.png", "train/ and val/"),
        ("train/1.png test/2.png val/3.png", "1.png", "3.png", "train/ and val/"),
        ("train/1.png test/2.png validation/3.png", "1.png", "3.png", "train/ and validation/"),
        ("train/1.png validation/2.png valid/3.png", "1.png", "3.png", "train/ and valid/"),
        # one of the two alone
        ("train/1.png 2.png", "1.png", None, "train/"),
        ("train/1.png pictures/2.png", "1.png", None, "train/"),
        ("val/a/1.png cat/2.png", "cat/2.png val/a/1.png", None, "all images"),
        ("val/a/1.png test/a/2.png cat/3.png", "cat/3.png test/a/2.png val/a/1.png", None, "all images"),
        ("val/a/1.png test/a/2.png 3.png", "3.png test/a/2.png val/a/1.png", None, "all images"),
        # classes, nested or not, and names that only begin like a split's
        ("cat/1.png cat/a/b/2.png dog/3.png", "cat/1.png cat/a/b/2.png dog/3.png", None, "all images"),
        (
            "train/cat/a/1.png train/dog/2.png test/cat/b/3.png",
            "cat/a/1.png dog/2.png",
            "cat/b/3.png",
            "train/ and test/",
        ),
        ("trains/1.png values/2.png", "trains/1.png values/2.png", None, "all images"),
        ("train.png val.png", "train.png val.png", None, "all images"),
        # single top folders are stepped over, as deep as they go, but for a picture beside them
        ("pets/train/cat/1.png pets/val/cat/2.png", "cat/1.png", "cat/2.png", "train/ and val/"),
        ("a/b/c/train/1.png a/b/c/val/2.png", "1.png", "2.png", "train/ and val/"),
        ("a/b/cat/1.png a/b/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
        ("a/1.png a/2.png", "1.png 2.png", None, "all images"),
        ("a/1.png", "1.png", None, "all images"),
        ("pets/train/1.png pets/val/2.png 3.png", "3.png pets/train/1.png pets/val/2.png", None, "all images"),
        ("pets/cat/1.png pets/.cache/2.png .trash/3.png", "1.png", None, "all images"),
        ("train/cat/1.png train/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
        ("test/cat/1.png test/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
        # ADE20K's order: the kind first, then the split
        (
            "images/training/1.jpg images/validation/2.jpg annotations/training/1.png annotations/validation/2.png",
            "annotations/1.png images/1.jpg",
            "annotations/2.png images/2.jpg",
            "training/ and validation/",
        ),
        (
            "ade/Images/Training/1.jpg ade/Images/Validation/2.jpg ade/annotations/training/1.png "
            "ade/annotations/validation/2.png ade/images/stray.jpg",
            "Images/1.jpg annotations/1.png",
            "Images/2.jpg annotations/2.png",
            "training/ and validation/",
        ),
        (
            "images/training/1.jpg images/validation/2.jpg annotations/training/1.png other/3.png",
            "annotations/training/1.png images/training/1.jpg images/validation/2.jpg other/3.png",
            None,
            "all images",
        ),
        ("images/a/1.jpg annotations/a/1.png", "annotations/a/1.png images/a/1.jpg", None, "all images"),
    ],
)
def test_how_files_are_parted(names, train, valid, how):
    first, second, said = file_index.split_files(ROOT, names.split())
    assert (below(first), below(second), said) == (train.split(), valid.split() if valid else None, how)


@pytest.mark.parametrize("names", ["val/a/1.png test/a/2.png", "top/Valid/1.png top/TEST/2.png"])
def test_validation_folders_alone_are_refused(names):
    with pytest.raises(UserError, match=r"'pets' has val(id)?/ and test/ but no train/ folder; add one, or leave only"):
        file_index.split_files(ROOT, names.split())


folders = st.sampled_from(["train", "Training", "val", "test", "cat", "dog", "images", "annotations", ".x"])
paths = st.lists(folders, max_size=3).map(lambda parts: "/".join([*parts, "1.png"]))


def split(names: list[str]) -> object:
    try:
        train, valid, how = file_index.split_files(ROOT, names)
    except UserError as error:
        return str(error)
    return below(train), below(valid), how


@given(st.lists(paths, min_size=1, unique=True), st.randoms(use_true_random=False))
def test_neither_the_order_nor_a_folder_around_all_changes_anything(names, random):
    found = split(names)
    assert split([f"top/{name}" for name in names]) == found
    assert split(random.sample([*names, "notes.txt", ".DS_Store"], len(names) + 2)) == found


@given(st.lists(paths, min_size=1, unique=True))
def test_no_file_is_in_two_splits_and_every_path_is_one_of_those_given(names):
    try:
        train, valid, _ = file_index.split_files(ROOT, names)
    except UserError:
        return
    files = [*train, *(valid or [])]
    given_out = [path for path, _ in files]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= {name for name in names if not name.startswith(".") and "/." not in name}
    for path, parts in files:
        assert parts[-1] == "1.png"
        assert set(parts) <= set(path.split("/"))
