"""Embeddings on their way into a file: a folder FILE.parts of finished pieces, so that what was stopped goes on.

Every piece is a file of its own, whole or not there. A mark says what they are parts of: the encoder, how it is read,
and the very images. The folder goes when FILE is there.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from iwm.data.file_states import file_states
from iwm.data.image_sets import ImageSet
from iwm.runtime import files
from iwm.runtime.errors import UserError

Piece = tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n *shape"]]
"""Rows of images in their source, and their embeddings."""
MARK = "mark"
LOCK = "lock"


def mark_of(facts: Mapping[str, Any], images: ImageSet, source: str) -> str:
    """What tells parts apart: how images are embedded, the source (of images in memory, their content), and names,
    sizes and times of the images' files, or of the archives they lie in."""
    digest = hashlib.sha256(json.dumps(dict(facts) | {"source": source}, sort_keys=True).encode())
    for path, state in file_states(images):
        digest.update(f"\n{path} {state or ''}".encode(errors="surrogateescape"))
    return digest.hexdigest()


class Parts:
    """The finished pieces of one file of embeddings, in the order of the images."""

    def __init__(self, path: Path, mark: str) -> None:
        """Parts with another mark are those of other embeddings and are deleted, as is whatever follows a damaged one.

        Raises UserError for a folder of that name that is not ours.
        """
        self.folder = folder_of(path)
        if self.folder.exists() and not (self.folder / MARK).is_file() and any(_others(self.folder)):
            raise UserError(f"{self.folder} is in the way of the parts of {path.name}; move it, or give another --out.")
        if self.folder.exists() and _text(self.folder / MARK) != mark:
            for part in self.folder.glob("*.npz"):
                part.unlink()
        self.rows: list[int] = []
        self.count = 0
        for number, part in enumerate(sorted(self.folder.glob("*.npz"))):
            piece = _read(part) if part == self._place(number) and self.count == number else None
            if piece is None:
                part.unlink()
                continue
            self.rows += piece[0].tolist()
            self.count += 1
        files.write_text(self.folder / MARK, mark)
        files.mark_output(self.folder)  # no source of images

    def add(self, rows: Int64[np.ndarray, " n"], vectors: Float32[np.ndarray, "n *shape"]) -> None:
        """Keep a piece. Raises OSError naming the file."""
        with files.replacing(self._place(self.count)) as place, place.open("wb") as file:
            np.savez(file, rows=rows, vectors=vectors)
        self.rows += rows.tolist()
        self.count += 1

    def __iter__(self) -> Iterator[Piece]:
        for number in range(self.count):
            piece = _read(self._place(number))
            if piece is None:
                raise UserError(f"{self._place(number)} is damaged; give the same command again.")
            yield piece

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def done_with(rows: Sequence[int]) -> int:
    """How many images at the beginning of a source are done when those of the rows have been embedded, in order."""
    return rows[-1] + 1 if rows else 0


def folder_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _others(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name != LOCK)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _read(path: Path) -> Piece | None:
    """A piece; None where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["rows"], arrays["vectors"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
