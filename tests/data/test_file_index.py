"""Which files a source holds, and which of them are pictures."""

import os
import zipfile
from pathlib import Path

import pytest

from iwm.data import file_index
from iwm.runtime.errors import UserError

ROOT = Path("pets")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


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
    assert sorted(found) == ["3.png", "a/1.png", "b/2.png"], "no image twice: it might be held out, and trained on"


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


@pytest.mark.parametrize("kind", [kind[1:] for kind in file_index.SUFFIXES])
def test_every_documented_type_is_a_picture_in_any_case(kind):
    names = [f"b.{kind}", f"a/c.{kind.upper()}", f"a.{kind.title()}", f"{kind}.txt", f"x.{kind}.part", f"x{kind}"]
    assert file_index.pictures_among(ROOT, names) == [f"a.{kind.title()}", f"a/c.{kind.upper()}", f"b.{kind}"]


@pytest.mark.parametrize(
    "name", [".1.png", ".git/1.png", "a/.cache/b/1.png", "a/._1.png", "__MACOSX/1.png", "a/__MACOSX/b/1.png"]
)
def test_hidden_files_and_what_macos_leaves_are_no_pictures(name):
    assert file_index.pictures_among(ROOT, [name, "a.b/1.png", "MACOSX/1.png"]) == ["MACOSX/1.png", "a.b/1.png"]
    with pytest.raises(UserError, match="'pets' holds no images; known file types are jpg, jpeg, jpe, jfif"):
        file_index.pictures_among(ROOT, [name])
