"""The files of a source: what a folder or archive holds, and which of it are images."""

import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

from iwm.data.decode import reason
from iwm.data.layout import parts_of
from iwm.runtime.errors import UserError
from iwm.runtime.files import OUTPUT_MARK

log = logging.getLogger("iwm")

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".tga", ".pcx", ".sgi", ".qoi"),
)
COMPANIONS = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".md", ".rst"),
    *(".html", ".htm", ".pdf", ".py", ".ipynb", ".m", ".sh", ".log", ".db", ".lock", ".part"),
)
"""Types of files that lie beside images and that nobody takes for one."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_sentences: set[str] = set()
"""Sentences that were said: a source may be opened several times."""


_unsaid = ContextVar("unsaid", default=False)


@contextmanager
def unsaid() -> Iterator[None]:
    """Open a source once more, for a question about it: what it leaves out for that is nothing a user must know."""
    token = _unsaid.set(True)
    try:
        yield
    finally:
        _unsaid.reset(token)


def note(source: str, sentence: str) -> None:
    """Tell the user once what is left out of a source, or read otherwise than one may think."""
    whole = f"{source}: {sentence}"
    if whole not in _sentences and not _unsaid.get():
        _sentences.add(whole)
        log.warning("%s", whole)


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
    suffixes = "".join(path.suffixes[-2:]).lower()
    if path.suffix.lower() in SUFFIXES:
        hint = "give the folder it lies in"
    elif re.search(r"\.(tar|tgz|7z|rar|gz|bz2|xz|zst)$", suffixes):
        hint = "unpack it and give the folder, or pack it as a .zip"
    else:
        hint = "give a folder, a .zip or an .npz"
    raise UserError(f"'{path}' is not a source of images; {hint}.")


def _archive_names(path: Path) -> list[str]:
    """Paths in a zip archive, as they are stored, each once. Raises UserError when it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"'{path}' is not a readable zip archive ({reason(error)}); make it again.") from error
    for member in members:
        if member.flag_bits & 1:
            raise UserError(f"'{path}' is encrypted (e.g. {member.filename}); unpack it and give the folder.")
        if member.compress_type not in METHODS:
            raise UserError(
                f"'{path}' is packed by method {member.compress_type}, which Python cannot read; unpack it and give "
                "the folder, or pack it by the method deflate."
            )
    names = list(dict.fromkeys(member.filename for member in members))
    outputs = {tuple(parts[:-1]) for parts in map(parts_of, names) if len(parts) > 1 and parts[-1] == OUTPUT_MARK}
    if not outputs:
        return names
    _note_outputs(path, ["/".join(folder) for folder in outputs])
    return [name for name in names if not any(tuple(parts_of(name)[: len(folder)]) == folder for folder in outputs)]


def _folder_names(root: Path) -> list[str]:
    """Paths of all files below a folder, links followed, without what iwm wrote there."""
    names, outputs = [], []
    visits = {os.path.realpath(root)}  # links are followed, but no folder is entered twice
    for folder, below, files in os.walk(root, followlinks=True):
        inside = Path(folder).relative_to(root).as_posix()
        if OUTPUT_MARK in files and inside != ".":
            below.clear()
            outputs.append(inside)
            continue
        below[:] = [
            name
            for name in below
            if (real := os.path.realpath(os.path.join(folder, name))) not in visits and not visits.add(real)
        ]
        names += [name if inside == "." else f"{inside}/{name}" for name in files]
    if outputs:
        _note_outputs(root, outputs)
    return names


def _note_outputs(root: Path, folders: Sequence[str]) -> None:
    listed = ", ".join(f"{folder}/" for folder in sorted(folders)[:3]) + ", ..." * (len(folders) > 3)
    note(str(root), f"{listed} {'was' if len(folders) == 1 else 'were'} written by iwm and left out.")


def uppermost(names: Sequence[str], file: str) -> str | None:
    """The path of the file of that name that has the fewest folders above it, or None."""
    return min((name for name in names if parts_of(name)[-1:] == [file]), key=lambda n: len(parts_of(n)), default=None)


def pictures_among(root: Path, names: Sequence[str]) -> list[str]:
    """The paths below `root` that are image files and not hidden, sorted; what else may be an image is counted and
    said. Raises UserError when there are none."""

    def hidden(path: str) -> bool:
        return any(part.startswith(".") or part == "__MACOSX" for part in parts_of(path))

    visible = [name for name in names if not name.endswith(("/", "\\")) and not hidden(name)]
    paths = sorted(name for name in visible if name.lower().endswith(SUFFIXES))
    others = Counter(PurePosixPath(name.lower()).suffix for name in visible if not name.lower().endswith(SUFFIXES))
    unknown = {kind: number for kind, number in others.most_common() if kind and kind not in COMPANIONS}
    if others[""]:
        unknown["without a suffix"] = others[""]
    listed = ", ".join(f"{number:,} {kind}" for kind, number in list(unknown.items())[:5])
    if not paths:
        what = f"it has {listed}; known file types are" if unknown else "known file types are"
        raise UserError(f"'{root}' holds no images; {what} {', '.join(kind[1:] for kind in SUFFIXES)}.")
    if unknown:
        note(
            str(root),
            f"{sum(unknown.values()):,} files are left out, for their type is not read ({listed}); convert those that "
            "are images to PNG, JPEG or TIFF.",
        )
    return paths
