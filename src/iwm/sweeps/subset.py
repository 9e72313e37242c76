"""A seeded choice of a source's images, kept as an .npz that is a source itself."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iwm.data.decode import BrokenImage
from iwm.data.file_states import changed_since, files_mark
from iwm.data.image_sets import ImageSet
from iwm.data.loader import load_all
from iwm.data.splits import share_of_each_class
from iwm.evaluation import ritual
from iwm.run_folder import plain_name
from iwm.runtime import files
from iwm.runtime.console import console


def write(train_set: ImageSet, test_set: ImageSet, counts: tuple[int, int], size: int, seed: int, folder: Path) -> str:
    """Write a seeded choice of both splits, evenly from all classes, as an .npz in `folder`; returns its path.

    Counts of 0 keep all. Pictures are squared at twice `size` where they are that large: a random crop of 0.3 of the
    area is then not enlarged. An .npz of before is taken again unless its images have changed since; then the present
    ones get a name of their own.
    """
    choice = _Choice.of(train_set, test_set, counts, size, seed, folder)
    first, own = choice.first, choice.own
    if path := choice.present():
        if path == first and not _note(first).exists():
            files.write_text(_note(first), choice.mark)
        return str(path)
    arrays = _arrays(choice.sets, choice.side)
    if first.exists() and not _holds(first, arrays):
        console.print(
            f"[yellow]The images of {train_set.name} have changed since {first} was written; the "
            f"present ones are in {own.name}.",
            soft_wrap=True,
        )
        return str(_save(own, arrays))
    if not first.exists():
        _save(first, arrays)
    files.write_text(_note(first), choice.mark)
    return str(first)


def written(
    train_set: ImageSet, test_set: ImageSet, counts: tuple[int, int], size: int, seed: int, folder: Path
) -> str:
    """Path of the .npz that `write` would take again, empty where there is none; writes nothing."""
    path = _Choice.of(train_set, test_set, counts, size, seed, folder).present()
    return str(path) if path else ""


@dataclass(frozen=True)
class _Choice:
    """The images of a choice, and the names of the .npz that may hold it."""

    sets: Sequence[ImageSet]
    side: int
    mark: str
    """Of the files that the images lie in."""
    first: Path
    own: Path
    """The name after the images have changed."""

    @classmethod
    def of(
        cls, train_set: ImageSet, test_set: ImageSet, counts: tuple[int, int], size: int, seed: int, folder: Path
    ) -> "_Choice":
        both = (train_set, test_set)
        sets = [share_of_each_class(images, count, seed) for images, count in zip(both, counts, strict=True)]
        side = max(size, min(2 * size, *_dimensions(train_set)))
        paths = [images.path(0) for images in both]
        settings = {"paths": paths, "side": side, "seed": seed, "all": [len(images) for images in both]}
        mark = files_mark(*sets)
        first, own = (
            folder / f"{plain_name(train_set.name)}-{len(sets[0])}x{len(sets[1])}-{ritual.fingerprint(how)[:6]}.npz"
            for how in (settings, settings | {"files": mark})
        )
        return cls(sets, side, mark, first, own)

    def present(self) -> Path | None:
        """The .npz that was written of the files as they are."""
        if self.own.exists():
            return self.own
        return self.first if self.first.exists() and _is_of(self.first, self.mark, self.sets) else None


def _is_of(path: Path, files_now: str, chosen: Sequence[ImageSet]) -> bool:
    """Whether an .npz was written of the files as they are, which it notes; older ones note nothing, and are when no
    file is newer."""
    note = _note(path)
    return note.read_text() == files_now if note.exists() else not changed_since(path, *chosen)


def _note(path: Path) -> Path:
    """The file that says of which files an .npz was written."""
    return path.with_suffix(".files")


def _arrays(chosen: Sequence[ImageSet], side: int) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for prefix, images in zip(("", "val_"), chosen, strict=True):
        pixels, kept = load_all(images, side)
        arrays[f"{prefix}images"] = pixels.permute(0, 2, 3, 1).numpy()
        if images.labels is not None and images.classes is not None:
            arrays |= {f"{prefix}labels": images.labels[kept], "classes": np.array(images.classes)}
    return arrays


def _holds(path: Path, arrays: Mapping[str, Any]) -> bool:
    """Whether an .npz holds these very arrays: files that were only copied or touched are the same images."""
    with np.load(path, allow_pickle=False) as there:
        return set(there.files) == set(arrays) and all(np.array_equal(there[name], arrays[name]) for name in arrays)


def _save(path: Path, arrays: Mapping[str, Any]) -> Path:
    with files.replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
    return path


def _dimensions(images: ImageSet) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    for index in range(len(images)):
        with suppress(BrokenImage):  # it is named when it is decoded
            return images.dimensions(index)
    return 0, 0
