"""Files are whole or absent, errors name them, and a lock is its holder's as long as that lives."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iwm.runtime import files
from iwm.runtime.errors import Busy, UserError

HOLDER = """
import sys, time
from pathlib import Path
from iwm.runtime import files
with files.lock(Path(sys.argv[1]), "held"):
    print("holding", flush=True)
    time.sleep(60)
"""


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


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        files.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "a" / "b", "Results", "give --out.")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Results cannot be written to .*/file/eval \(Not a directory\); give --out\."):
        files.require_writable(tmp_path / "file" / "eval", "Results", "give --out.")
    with pytest.raises(UserError, match=r"is a folder; give a file\."):
        files.require_file(tmp_path, "The page", "give a file.")


@pytest.mark.skipif(files.fcntl is None, reason="no locks")
def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "holding\n"
        with (
            pytest.raises(Busy, match=rf"is trained by process {holder.pid} on "),
            files.lock(path, "run is trained"),
        ):
            pass
        holder.kill()
    with files.lock(path, "run is trained"):
        assert path.read_text().startswith(f"process {os.getpid()} ")
    assert not path.exists()


@pytest.mark.skipif(files.fcntl is None, reason="no locks")
def test_one_process_holds_a_lock_once_and_its_children_not_at_all(tmp_path: Path) -> None:
    path, order = tmp_path / ".lock", []
    with files.lock(path, "held"):
        with pytest.raises(Busy, match="held by process"), files.lock(path, "held"):
            pass

        def later() -> None:
            with files.lock(path, "held", wait=True):
                order.append("second")

        thread = threading.Thread(target=later)
        thread.start()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:  # lives on when the lock is free again
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)


def test_a_folder_made_for_a_lock_goes_with_it_unless_it_is_used(tmp_path: Path) -> None:
    with files.lock(tmp_path / "unused" / ".lock", "held"):
        pass
    with files.lock(tmp_path / "used" / ".lock", "held"):
        (tmp_path / "used" / "file").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["used"]


def test_a_folder_is_filled_whole_or_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with files.filling(folder) as part:
        (part / "a").write_text("one")
        assert not [path for path in folder.iterdir() if path != part]
    with pytest.raises(FileNotFoundError), files.filling(folder) as part:
        (part / "absent").rename(part / "a")
    with files.filling(folder) as part:
        (part / "b").write_text("two")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "one", "b": "two"}
    assert list(folder.parent.iterdir()) == [folder]
    with pytest.raises(ValueError, match="no"), files.filling(tmp_path / "failed"):
        raise ValueError("no")
    assert not (tmp_path / "failed").exists()


def test_a_folder_is_filled_that_lies_on_another_disk_or_is_the_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is moved into place comes from inside the folder: from beside it nothing moves to another disk."""
    moves, move = [], os.replace

    def moving(source: Path, target: Path) -> None:
        moves.append(Path(source).parent.parent == Path(target).parent)
        move(source, target)

    monkeypatch.setattr(os, "replace", moving)
    monkeypatch.chdir(tmp_path)
    with files.filling(Path()) as part:
        (part / "a").write_text("one")
    assert (tmp_path / "a").read_text() == "one"
    assert moves == [True]
