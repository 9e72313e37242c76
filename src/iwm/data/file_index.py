"""The files of a source: which of a folder or archive are images, and how their folders part them into splits."""

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from iwm.data.decode import reason
from iwm.runtime.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
TRAIN_FOLDERS = ("train", "training")
VAL_FOLDERS = ("val", "valid", "validation", "test")
"""Folder names of the splits, any case; of several the first is taken."""
IMAGES, MASKS = "images", "annotations"
"""The two folders of a split whose images have masks (`iwm.data.annotations`)."""
Named = tuple[str, list[str]]
"""A file's path below its root, and the parts of it that lie below single top folders and the split's folder."""


def locate(source: str) -> tuple[Path, str]:
    """Path and short name of a source on disk. Raises UserError when there is none."""
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"There is no '{source}'; give a folder, .zip, .npz, `sample` or `sample-objects` (several with commas)."
        )
    return path, re.sub(r"[^\w.-]+", "-", path.resolve().name if path.is_dir() else path.stem).strip("-.") or "images"


def file_names(path: Path) -> list[str]:
    """Paths of all files in a folder or a zip archive, below it. Raises UserError when it is neither."""
    if path.is_dir():
        return _folder_names(path)
    if path.suffix.lower() == ".zip":
        return _archive_names(path)
    hint = "give the folder it lies in" if path.suffix.lower() in SUFFIXES else "give a folder, a .zip or an .npz"
    raise UserError(f"'{path}' is not a source of images; {hint}.")


def _archive_names(path: Path) -> list[str]:
    """Paths in a zip archive. Raises UserError when it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"'{path}' is not a readable zip archive ({reason(error)}); make it again.") from error


def _folder_names(root: Path) -> list[str]:
    """Paths of all files below a folder, links followed."""
    names = []
    visits: set[str] = set()  # links are followed, but a loop only once
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [
            name
            for name in below
            if (real := os.path.realpath(os.path.join(folder, name))) not in visits and not visits.add(real)
        ]
        inside = Path(folder).relative_to(root).as_posix()
        names += [name if inside == "." else f"{inside}/{name}" for name in files]
    return names


def pictures_among(root: Path, names: Sequence[str]) -> list[str]:
    """The paths below `root` that are image files and not hidden, sorted. Raises UserError when there are none."""

    def hidden(parts: Sequence[str]) -> bool:
        return any(part.startswith(".") or part == "__MACOSX" for part in parts)

    paths = sorted(item for item in names if item.lower().endswith(SUFFIXES) and not hidden(item.split("/")))
    if not paths:
        raise UserError(f"'{root}' holds no images; known file types are {', '.join(kind[1:] for kind in SUFFIXES)}.")
    return paths


def split_files(root: Path, names: Sequence[str]) -> tuple[list[Named], list[Named] | None, str]:
    """The image files of training and validation (None where there is no such folder), and in words how they are told
    apart.

    ADE20K's own order (images/training/, annotations/training/) is read as training/images/ and so on. Raises
    UserError when there are no images.
    """
    paths = pictures_among(root, names)
    # (path, what of it lies below the single top folders)
    files = [(path, path.split("/")) for path in paths]
    while len(files[0][1]) > 1 and len({parts[0] for _, parts in files}) == 1:
        files = [(path, parts[1:]) for path, parts in files]

    tops = {parts[0].lower() for _, parts in files if len(parts) > 1}
    if tops == {IMAGES, MASKS}:
        seconds = {parts[1].lower() for _, parts in files if len(parts) > 2}
        if seconds & {*TRAIN_FOLDERS} and seconds & {*VAL_FOLDERS}:
            files = [(path, [parts[1], parts[0], *parts[2:]]) for path, parts in files if len(parts) > 2]
            tops = seconds

    def below(folder: str) -> list[Named]:
        return [(path, parts[1:]) for path, parts in files if len(parts) > 1 and parts[0].lower() == folder]

    train = next((folder for folder in TRAIN_FOLDERS if folder in tops), None)
    valid = next((folder for folder in VAL_FOLDERS if folder in tops), None)
    held = [folder for folder in VAL_FOLDERS if folder in tops]
    if train is None and len(held) > 1 and len(held) == len(tops) and all(len(parts) > 1 for _, parts in files):
        named = " and ".join(f"{folder}/" for folder in held)
        raise UserError(f"'{root}' has {named} but no train/ folder; add one, or leave only one of those in it.")
    if train is None:
        return files, None, "all images"
    if valid is None:
        return below(train), None, f"{train}/"
    return below(train), below(valid), f"{train}/ and {valid}/"
