"""A result or a run as tables on a terminal and in a notebook, and a picture as a figure."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from iwm.runtime.console import console, in_words, table, text_printed
from iwm.runtime.drawing import DPI, blank

ORIGIN = (
    *("command", "settings", "fingerprint", "hardware", "date", "seed", "run", "run_weights", "other_encoder_weights"),
    *("weights", "tried", "confusion"),
)
"""Entries that a table leaves out; the mapping has them."""
MOST_ROWS = 50
"""Rows of a nested table."""

Rows = list[list[Any]]


def _flat(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def tables_of(title: str, content: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Tables of a result: its plain entries, then each entry that is itself a table, column names first."""
    entries = {name: value for name, value in content.items() if name not in ORIGIN}
    plain = [[name, value] for name, value in entries.items() if _flat(value)]
    tables: list[tuple[str, Rows]] = [(title, [["what", "value"], *plain])]
    for name, value in entries.items():
        if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
            value = [{"": key, **row} for key, row in value.items()]
        if not isinstance(value, list) or not value or not all(isinstance(row, Mapping) for row in value):
            continue
        columns = [key for key in dict.fromkeys(key for row in value for key in row) if _flat(value[0].get(key))]
        tables.append((name, [columns, *([row.get(key) for key in columns] for row in value[:MOST_ROWS])]))
    return tables


def text_of(tables: Sequence[tuple[str, Rows]]) -> str:
    """The tables as a terminal shows them."""

    def printing() -> None:
        for title, (columns, *rows) in tables:
            console.print(table(title, [str(name) for name in columns], rows))

    return text_printed(printing)


def html_of(rows: Rows, title: str) -> str:
    """A table as HTML, column names first."""
    head, *body = [[html.escape(in_words(value)) for value in row] for row in rows]
    lines = ["".join(f"<td>{value}</td>" for value in row) for row in body]
    columns = "".join(f"<th>{value}</th>" for value in head)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption style='text-align:left'><b>{html.escape(title)}</b></caption>"
    return f"<table>{caption}<thead><tr>{columns}</tr></thead><tbody>{inside}</tbody></table>"


def picture_html(path: Path) -> str:
    """A PNG inside HTML."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{html.escape(path.stem)}' style='max-width:100%' src='data:image/png;base64,{data}'>"


def figure_of(path: Path) -> Figure:
    """A PNG as a matplotlib figure of its size."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    figure = blank(width / DPI, height / DPI)
    figure.set_dpi(DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="none", aspect="auto")
    return figure
