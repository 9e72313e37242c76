"""Metrics as JSON lines, and the progress bar people watch meanwhile."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iwm import files
from iwm.errors import UserError


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command line; rich would exit with 1, `iwm doctor`'s word for ill runs


console = _Console(stderr=False, highlight=False)


class Metrics:
    """`metrics.jsonl`: one object a line, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Forget every line after `step`: on resume the log is cut back to the checkpoint."""
        if self.path.exists():
            lines = [line for line in read_metrics(self.path) if line["step"] <= step]
            files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(plain(line)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line torn by a crash is left out. Raises UserError for any other damage."""
    # What follows the last newline is torn, or empty. Bytes that are no text spoil their own line only.
    *lines, _torn = path.read_text(errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {path} is damaged; delete that line.") from None
        records.append(record)
    return records


def progress(unit: str = "steps") -> Progress:
    """A progress bar with done/total, a free `note` column, elapsed time and ETA; plain when not on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2 if sys.stdout.isatty() else 0.05,
        transient=False,
    )


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
