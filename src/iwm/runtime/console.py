"""What people see on a terminal, in a log file or in a notebook: tables, and the progress bar they watch meanwhile."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from iwm.runtime import notebook


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command line; rich would exit with 1, `iwm doctor`'s word for ill runs


console = _Console(stderr=False, highlight=False)

_TABLES_PRINTED: ContextVar[bool] = ContextVar("tables_printed", default=True)


@contextmanager
def tables_returned() -> Iterator[None]:
    """Meanwhile results are not printed, for the caller gets objects that print themselves."""
    token = _TABLES_PRINTED.set(False)
    try:
        yield
    finally:
        _TABLES_PRINTED.reset(token)


def tables_are_printed() -> bool:
    """Whether a verb prints its table itself."""
    return _TABLES_PRINTED.get()


def progress(unit: str = "steps") -> Progress:
    """A progress bar with done/total, a free `note` column, elapsed time and ETA, on a terminal or in a notebook."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    display = notebook.display()
    if display:
        return notebook.NotebookProgress(*columns, unit=unit, display=display)
    return Progress(*columns, console=console, refresh_per_second=2 if sys.stdout.isatty() else 0.05, transient=False)


def shows_bars() -> bool:
    """Whether a progress bar is seen while it moves; a log file takes lines instead."""
    return console.is_terminal or notebook.display() is not None


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
