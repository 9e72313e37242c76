"""`iwm export`: a RUN in a format of others, with a result that says what was written and how far it was compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from iwm import config
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Content
from iwm.exporting import FORMATS
from iwm.exporting.format import Request
from iwm.exporting.hub_folder import README
from iwm.run_folder import read_result
from iwm.runtime import files
from iwm.runtime.console import console, table, tables_are_printed
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.verbs.export import Export

RESULT = "export.json"
"""What was written, beside it."""
CARD = "card_sha256"
"""Its entry that tells whether somebody has edited the model card since."""
NO_FOLDER = (".onnx", ".pt2", ".safetensors", ".pt", ".pth", ".bin")
"""Endings of files, where a folder is asked for."""


def export(o: Export) -> Content:
    """Write a RUN into the folder `out`, in the format that the options name; returns the content of its `export.json`.

    Of an earlier export there, no file is left beside the new ones. Raises UserError for an unknown format, options it
    has no use for, what the run does not have, a folder that holds something else or an edited model card, and a graph
    that does not compute what the model does.
    """
    kind, request, out = FORMATS.find(o.format)(), Request(o), Path(o.out).expanduser()
    kind.check(o)
    require_place(out, o.format)
    _ = request.meta  # whatever is wrong with RUN is said before anything is computed
    if out.resolve() == request.place.resolve():
        raise UserError(f"{out} holds the very weights that are exported; give another --out FOLDER.")
    before = read_result(out / RESULT)
    require_unedited(out, before)
    cpu = config.Speed(device="cpu", precision="fp32")
    with Session.open(cpu), torch.no_grad(), files.filling(out) as folder:
        payload: dict[str, Any] = {"format": o.format, **kind.write(request, folder)}
        if folders := [path.name for path in folder.iterdir() if path.is_dir()]:
            raise UserError(f"--format {o.format} writes the folder {folders[0]}; an export holds files alone.")
        payload["files"] = sizes_of(folder)
        payload["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
        if (folder / README).is_file():
            payload[CARD] = files.sha256_of(folder / README)
        settings = {"run": o.run, "student": o.student, "size": o.size, "small": o.small}
        content = ritual.content_of(payload, settings)
        if o.format == "hub":  # goes to others: no command, no machine
            content = {name: content[name] for name in ("format", "files", CARD, "versions", "date")}
        files.write_text(folder / RESULT, json.dumps(content, indent=1) + "\n")
        (folder / files.OUTPUT_MARK).touch()
    remove_earlier(out, _files_of(before), payload["files"])
    result = Content(content | {"path": str(out / RESULT)})
    result.print = lambda: show(result, [*kind.usage(out, payload)])
    if tables_are_printed():
        result.print()
    console.print(f"Written to {out}", soft_wrap=True)
    return result


def require_place(out: Path, format: str) -> None:
    """Raises UserError unless files can be written into this folder without a mixture of old and new."""
    if out.suffix in NO_FOLDER:
        raise UserError(f"--out {out} is the name of a file; give a folder, which files are written into.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out FOLDER.")
    others = out.exists() and any(path.suffix != files.PART for path in out.iterdir())
    if others and not (out / RESULT).is_file():
        raise UserError(f"{out} holds something else than an export; give a new --out FOLDER.")
    before = read_result(out / RESULT).get("format", format)
    if before != format:
        raise UserError(f"{out} holds an export as {before}; give a new --out FOLDER.")
    files.require_writable(out, "The export", "give another --out FOLDER.")


def require_unedited(out: Path, before: Mapping[str, Any]) -> None:
    """Raises UserError where the model card of an earlier export has another text since, which would be lost."""
    card = out / README
    if README not in _files_of(before) or not card.is_file():
        return
    edited = files.sha256_of(card) != before[CARD] if CARD in before else card.stat().st_size != before["files"][README]
    if edited:
        raise UserError(f"{card} was edited since it was exported; move it away, or give a new --out FOLDER.")


def _files_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The files {name: bytes} that an earlier export names; none where its result is damaged."""
    names = result.get("files")
    return names if isinstance(names, dict) else {}


def remove_earlier(out: Path, before: Mapping[str, Any], now: Mapping[str, int]) -> None:
    """Delete the files {name: bytes} of an earlier export that are not among the new ones. One that has another size
    since is somebody's own by now: it is kept, and named."""
    for name in sorted(set(before) - {*now, RESULT}):
        path = out / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            continue  # an export writes files into its folder, and nothing else
        if path.stat().st_size == before[name]:
            path.unlink()
        else:
            console.print(f"{path} is of an earlier export and was changed since; it is kept.", soft_wrap=True)


def sizes_of(folder: Path) -> dict[str, int]:
    """The files of a folder with their bytes, but for our marks."""
    names = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {name: size for name, size in names.items() if name not in (RESULT, files.OUTPUT_MARK)}


def in_megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def show(content: Content, usage: list[str]) -> None:
    """The files with their sizes, the graphs with how far they are from the model, and how to load all that."""
    rows = [[name, in_megabytes(size)] for name, size in content["files"].items()]
    console.print(table(f"Exported as {content['format']}", ["file", "MB"], rows))
    parts = content.get("parts", {})
    if parts:
        columns = ["part", "takes", "gives", "largest difference", "of values up to"]
        batches = ", ".join(next(iter(parts.values()))["differences"])
        rows = [
            [name, _shapes(part["inputs"]), _shapes(part["outputs"]), *_compared(part)] for name, part in parts.items()
        ]
        console.print(table(f"Compared with the model, images at once: {batches}", columns, rows))
    for line in usage:
        console.print(line, soft_wrap=True)


def _shapes(tensors: dict[str, list[Any]]) -> str:
    return "\n".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in tensors.items())


def _compared(part: dict[str, Any]) -> list[str]:
    return [f"{part['largest_difference']:.1e}", f"{part['largest_value']:.3g}"]
