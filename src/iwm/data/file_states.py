"""Which files the images of a set lie in, and whether they are those of before."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from iwm.data.image_sets import ImageSet


class FileState(NamedTuple):
    """What changes when a file is written anew."""

    file: str
    """The file itself, or the archive that it lies in."""
    size: int
    """Bytes."""
    time: int
    """Of the last change, in nanoseconds."""

    def __str__(self) -> str:
        return f"{self.size} {self.time}"


def file_states(images: ImageSet) -> Iterator[tuple[str, FileState | None]]:
    """Of every image its path and the state of its file, or of the archive it lies in; None for what is no file."""
    archive = ""
    archives: dict[str, FileState | None] = {"": None}
    for row in range(len(images)):
        path = images.path(row)
        if archive and path.startswith((f"{archive}/", f"{archive}:")):
            yield path, archives[archive]
            continue
        state = _state(path)
        if state is None:  # an entry of an archive
            archive = next((str(one) for one in Path(path).parents if one.is_file()), path.rpartition(":")[0])
            if archive not in archives:
                archives[archive] = _state(archive)
            state = archives[archive]
        yield path, state


def files_mark(*sets: ImageSet) -> str:
    """Hex digest of the files that the images lie in, however their source was typed: of loose ones the names, sizes
    and times, of an archive the names and checksums of what it holds, for archives are often copied."""
    digest = hashlib.sha256()
    folders: dict[str, str] = {}
    archives: dict[str, str] = {}
    for images in sets:
        for path, state in file_states(images):
            content = ""
            if state is not None:
                folder, name = os.path.split(path)
                if folder not in folders:
                    folders[folder] = os.path.realpath(folder)
                if state.file != path and state.file not in archives:
                    archives[state.file] = _checksums(state)
                path, content = f"{folders[folder]}/{name}", archives.get(state.file, str(state))
            digest.update(f"\n{path} {content}".encode(errors="surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def changed_since(path: Path, *sets: ImageSet) -> bool:
    """Whether a file of the images was changed after the file `path`."""
    time = path.stat().st_mtime_ns
    return any(state is not None and state.time > time for images in sets for _, state in file_states(images))


def _checksums(archive: FileState) -> str:
    """Hex digest of the names and checksums in a .zip or .npz; of what is neither, size and time."""
    try:
        with zipfile.ZipFile(archive.file) as entries:
            text = "\n".join(f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in entries.infolist())
    except (OSError, zipfile.BadZipFile):
        return str(archive)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _state(path: str) -> FileState | None:
    """The state of a file; None where there is none of that name."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return FileState(path, state.st_size, state.st_mtime_ns)
