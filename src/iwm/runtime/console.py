"""What people see on a terminal, in a log file or in a notebook: tables, and the progress bar they watch meanwhile."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from iwm.runtime import notebook

STYLES = ("yellow", "red", "bold")
"""A printed sentence may begin with one of these in brackets, and has that style; yellow ones are warnings. All else
in brackets is text: names of files and classes have brackets, too."""


class _Console(Console):
    hushed = False
    """Whether warnings alone are printed."""
    captured = False
    """Whether what is printed becomes a text, which no warning is part of."""

    def print(self, *objects: Any, **keywords: Any) -> None:
        objects = tuple(_in_style(one) for one in objects)
        if any(_is_warning(one) for one in objects):
            if not (self.quiet or self.captured):
                _warnings.print(*objects, **keywords)
        elif not self.hushed:
            super().print(*objects, **keywords)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for the command line; rich would exit with 1, `iwm doctor`'s word for ill runs


def _in_style(text: Any) -> Any:
    """A sentence that begins with one of STYLES, in that style; anything else as it is."""
    for style in STYLES:
        if isinstance(text, str) and text.startswith(f"[{style}]"):
            return Text(text.removeprefix(f"[{style}]"), style)
    return text


def _is_warning(text: Any) -> bool:
    """Whether this is printed in yellow, as every warning is."""
    return isinstance(text, Text) and text.style == "yellow"


console = _Console(stderr=False, highlight=False, markup=False, emoji=False)
_warnings = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Where warnings go, so that standard output holds results alone."""

_SENTENCES: ContextVar[set[str] | None] = ContextVar("sentences", default=None)
_TABLES_PRINTED: ContextVar[bool] = ContextVar("tables_printed", default=True)


@contextmanager
def tables_returned() -> Iterator[None]:
    """Meanwhile results are not printed, for the caller gets objects that print themselves."""
    token = _TABLES_PRINTED.set(False)
    try:
        yield
    finally:
        _TABLES_PRINTED.reset(token)


@contextmanager
def hushed() -> Iterator[None]:
    """Meanwhile warnings alone are printed."""
    before, console.hushed = console.hushed, True
    try:
        yield
    finally:
        console.hushed = before


@contextmanager
def warnings_once() -> Iterator[None]:
    """Meanwhile `warn_once` prints every sentence once."""
    token = _SENTENCES.set(set()) if _SENTENCES.get() is None else None
    try:
        yield
    finally:
        if token:
            _SENTENCES.reset(token)


def warn_once(sentence: str) -> None:
    """Print a warning, unless it was printed before in the same `warnings_once`."""
    sentences = _SENTENCES.get()
    if sentences is None or sentence not in sentences:
        console.print(f"[yellow]{sentence}")
    if sentences is not None:
        sentences.add(sentence)


def text_printed(printing: Callable[[], Any]) -> str:
    """What `printing` prints, without warnings."""
    console.captured = True
    try:
        with console.capture() as capture:
            printing()
    finally:
        console.captured = False
    return capture.get().rstrip("\n")


def tables_are_printed() -> bool:
    """Whether a verb prints its table itself."""
    return _TABLES_PRINTED.get()


def progress(unit: str = "steps") -> Progress:
    """A progress bar with done/total, a free `note` column, elapsed time and ETA, on a terminal or in a notebook; in a
    pipe or a file one line at the end, without bar."""
    done = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), TextColumn(unit))
    note = (TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn())
    columns = (done[0], BarColumn(), *done[1:], *note, TextColumn("ETA"), TimeRemainingColumn())
    display = notebook.display()
    if display:
        return notebook.NotebookProgress(*columns, unit=unit, display=display)
    if console.is_terminal:
        return Progress(*columns, console=console, refresh_per_second=2, disable=console.hushed)
    return Progress(*done, *note, console=console, refresh_per_second=0.05, disable=console.hushed)


def shows_bars() -> bool:
    """Whether a progress bar is seen while it moves; a log file takes lines instead."""
    return (console.is_terminal or notebook.display() is not None) and not console.hushed


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A rich table; numbers right-aligned, fractions of 1 with four digits, None as a dash, long names folded."""
    built = Table(title=title, title_justify="left")
    rows = [list(row) for row in rows]
    for place_, column in enumerate(columns):
        numeric = any(isinstance(row[place_], int | float) for row in rows)
        built.add_column(column, justify="right" if numeric else "left", overflow="fold")
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


def show(title: str, values: Mapping[str, Any]) -> None:
    """Print one result as a two-column table."""
    console.print(table(title, ["what", "value"], values.items()))
