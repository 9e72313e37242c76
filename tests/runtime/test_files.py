"""Files are whole or absent, errors name them."""

import threading
from pathlib import Path

import pytest

from iwm.runtime import files
from iwm.runtime.errors import UserError


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text"
    files.write_text(path, "one")
    with pytest.raises(FileNotFoundError), files.replacing(path) as part:
        (part.parent / "half").rename(part)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_two_threads_write_one_file_beside_each_other(tmp_path: Path) -> None:
    path, names = tmp_path / "text", []
    with files.replacing(path) as mine:
        mine.write_text("mine")

        def write() -> None:
            with files.replacing(path) as part:
                names.append(part)
                part.write_text("other")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert names != [mine]
    assert path.read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_names_the_file_and_not_what_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error, files.naming(path), path.open("a") as file:
        file.write("line")
    assert error.value.filename == str(path)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "a" / "b", "Results", "give --out.")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Results cannot be written to .*/file/eval \(Not a directory\); give --out\."):
        files.require_writable(tmp_path / "file" / "eval", "Results", "give --out.")
    with pytest.raises(UserError, match=r"is a folder; give a file\."):
        files.require_file(tmp_path, "The page", "give a file.")
