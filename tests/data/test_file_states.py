"""Images that were changed are told from those of before, whatever they lie in and however that was typed."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import pictures_file
from picture_files import write

from iwm.data.file_states import changed_since, file_states, files_mark
from iwm.data.sources import open_images


@pytest.fixture(params=["folder", "zip", "npz"])
def source(request, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for kind in ("cat", "dog"):
        for number in range(3):
            write(folder / kind / f"{number}.png", (number, 40, 80))
    if request.param == "folder":
        return folder
    if request.param == "zip":
        return Path(shutil.make_archive(str(folder), "zip", folder))
    return pictures_file(tmp_path / "photos.npz", count=6)


def test_the_files_of_all_images_are_known(source):
    images = open_images(str(source), "all")
    states = list(file_states(images))
    assert [path for path, _ in states] == [images.path(row) for row in range(len(images))]
    file = Path(images.path(0)) if source.is_dir() else source
    assert states[0][1] == (str(file), file.stat().st_size, file.stat().st_mtime_ns)
    assert all(state for _, state in states)


def test_a_mark_changes_with_a_file_and_not_with_how_it_was_typed(source, monkeypatch):
    mark = files_mark(open_images(str(source), "all"))
    monkeypatch.chdir(source.parent)
    assert files_mark(open_images(source.name, "all")) == mark
    if source.is_dir():
        os.utime(next(source.rglob("*.png")), (1, 1))
    else:
        os.utime(source, (1, 1))
        assert files_mark(open_images(str(source), "all")) == mark, "an archive that was copied"
        with zipfile.ZipFile(source, "a") as archive:
            archive.writestr("note.txt", "written anew")
    assert files_mark(open_images(str(source), "all")) != mark


def test_it_is_known_whether_a_file_is_newer(source, tmp_path):
    images, later = open_images(str(source), "all"), tmp_path / "later"
    later.touch()
    assert not changed_since(later, images)
    file = next(source.rglob("*.png")) if source.is_dir() else source
    os.utime(file, ns=(0, later.stat().st_mtime_ns + 1))
    assert changed_since(later, images)


def test_what_is_no_file_has_no_state():
    assert {state for _, state in file_states(open_images("sample", "val"))} == {None}
