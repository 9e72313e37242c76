"""Metrics as JSON lines, and the progress bar people watch meanwhile."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


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


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A rich table; numbers right-aligned, fractions of 1 with four digits, None as a dash."""
    built = Table(title=title, title_justify="left")
    rows = [list(row) for row in rows]
    for place_, column in enumerate(columns):
        numeric = any(isinstance(row[place_], int | float) for row in rows)
        built.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        built.add_row(*(in_words(value) for value in row))
    return built


def in_words(value: Any) -> str:
    """A cell: None as a dash, whole numbers with separators, other numbers with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def show(title: str, values: Mapping[str, Any], path: Path | None = None) -> None:
    """Print one result as a two-column table, and where it was written."""
    console.print(table(title, ["what", "value"], values.items()))
    if path:
        console.print(f"Written to {path}", soft_wrap=True)
