"""Metrics as JSON lines, and the progress bar people watch meanwhile."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=False, highlight=False)


class Metrics:
    """`metrics.jsonl`: one object a line, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Forget every line after `step`: on resume the log is cut back to the checkpoint."""
        if self.path.exists():
            lines = [line for line in read_metrics(self.path) if line["step"] <= step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line torn by a crash is left out."""
    lines = path.read_text().split("\n")
    torn = lines.pop()  # empty when the file ends in a newline
    records = [json.loads(line) for line in lines if line]
    if torn and torn.endswith("}"):
        records.append(json.loads(torn))
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
