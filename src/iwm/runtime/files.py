"""Files that are whole or absent: written beside their final place, synced to disk, renamed; and who may write them."""

import contextlib
import errno
import hashlib
import math
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from iwm.runtime.errors import Busy, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What disks answer that know no locks."""

OUTPUT_MARK = ".iwm-output"
"""A file in every folder that iwm writes pictures into, so that they are not read as a source's images."""


def mark_output(folder: Path) -> None:
    """Make a folder, and mark it as one that iwm writes into."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTPUT_MARK).touch()


def sync(path: Path) -> None:
    """Have a file's (or folder's) contents on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


PART = ".part"
"""End of the names of what is being written; killed, a process leaves it behind."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path to write to; it takes the place of `path` when the block ends without an exception.

    The name is this thread's own, so two may write the same file at once and the later one wins. Whatever fails, an
    OSError names `path`. A device or a pipe is refused: it would be gone, and a file in its place.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    with naming(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write files into; they lie in `folder`, beside what is there already, when the block
    ends without an exception. Whatever fails, an OSError names `folder`, and a new one is not left behind."""
    part = folder / f".{os.getpid()}-{threading.get_ident()}{PART}"  # inside: it may be a link, or a disk of its own
    with naming(folder):
        new = not folder.exists()
        part.mkdir(parents=True)
        try:
            yield part
            for file in sorted(part.iterdir()):
                sync(file)
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if new and not any(folder.iterdir()):
                folder.rmdir()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside the block names this path: the one of a full disk names none, others name what lies beside."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def require_writable(folder: Path, what: str, mend: str) -> None:
    """Raises UserError, "`what` cannot be written to `folder` (why); `mend`", unless a file can be written there.

    Of a folder that does not exist, the nearest one above it is tried. Nothing is left behind.
    """
    place = folder.absolute()
    try:
        nearest = next(one for one in (place, *place.parents) if one.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what} cannot be written to {folder} ({reason}); {mend}") from None


def require_file(path: Path, what: str, mend: str, begins: bytes = b"") -> None:
    """`require_writable` for one file, which may exist but is no folder; nor does it hold something else, as an image
    or a list does: where it is not empty it must begin so."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; {mend}")
    if path.is_file() and path.stat().st_size and begins:
        with path.open("rb") as file:
            if file.read(len(begins)) != begins:
                raise UserError(f"{path} holds something else than {what[0].lower()}{what[1:]}; {mend}")
    require_writable(path.parent, what, mend)


# ---- locks ---------------------------------------------------------------------------------------------------------

_held: set[IO[str]] = set()
"""The lock files of this process."""


def _forget_locks() -> None:
    """In a process forked from this one: a lock is its holder's, and ends with it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` inside the block; it is gone afterwards, and free when its holder dies, however.

    Raises Busy, "`what` by process N; ...", while another process or thread holds it, unless `wait`. Where the disk
    knows no locks, nothing is held.
    """
    folder_is_new = not path.parent.exists()
    file = _locked(path, what, wait)
    try:
        yield
    finally:
        if file:
            path.unlink(missing_ok=True)
            _held.discard(file)
            file.close()
        if folder_is_new:  # and still empty: nothing came of it
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _locked(path: Path, what: str, wait: bool) -> IO[str] | None:
    """The lock file, locked and with this process's number in it; None where there are no locks."""
    while fcntl is not None:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise Busy(f"{what} by {holder}; wait until it has ended, or give another folder.") from None
        except OSError as error:
            file.close()
            if error.errno not in NO_LOCKS:
                raise
            return None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            _held.add(file)
            with naming(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            return file
        file.close()  # its holder removed it meanwhile
    return None


# ---- contents ------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: UTF-8, in which names of files that are none keep their bytes."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")


def plain(value: Any) -> Any:
    """JSON-safe copy: tuples as lists, array and tensor scalars as numbers, paths as text, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
