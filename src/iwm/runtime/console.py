"""Metrics as JSON lines, and the progress bar people watch meanwhile."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command line; rich would exit with 1, `iwm doctor`'s word for ill runs


console = _Console(stderr=False, highlight=False)


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
