"""Figures in one style: a blank page, axes, bars, pictures and words placed on it.

Every function returns or fills a matplotlib figure of its own (no global state); `save` writes it. Colours are those of
Okabe and Ito, which people with any colour vision can tell apart.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from iwm.runtime import files
from iwm.runtime.console import warn_once
from iwm.runtime.errors import UserError

BLUE, ORANGE, GREEN, GREY, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#222222", "#56B4E9"
DPI = 160


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    with files.replacing(path) as part:
        part.write_bytes(png_of(figure))
    return path


def png_of(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    _choose_fonts(figure)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # said by `_choose_fonts`, once
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


# ---- the writing on a figure ---------------------------------------------------------------------------------------


def _choose_fonts(figure: Figure) -> None:
    """Let every text be drawn as it stands: no formulas, and with fonts of this machine for what the usual font lacks,
    as Chinese names of classes. Where there is none it is said."""
    for axes in figure.axes:  # the writing of ticks is made when it is asked for
        axes.get_xticklabels()
        axes.get_yticklabels()
    texts: list[Text] = figure.findobj(Text)
    characters = {character for text in texts for character in text.get_text() if character.isprintable()}
    fonts = {character: _font_with(character) for character in characters if not _usual_font_has(character)}
    families = sorted({*fonts.values()} - {""})
    for text in texts:
        text.set_parse_math(False)
        if families:
            text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *families])])
    if lacking := "".join(sorted(character for character, font in fonts.items() if not font)):
        warn_once(
            f"No font on this machine has {lacking}, so pictures show boxes there; install one that does, such "
            "as Noto Sans CJK, and measure again."
        )


def _usual_font_has(character: str) -> bool:
    return _has(font_manager.findfont(font_manager.FontProperties()), character)


@cache
def _font_with(character: str) -> str:
    """The family of an installed font that has this character; empty where none has."""
    fonts = [font for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name]  # which has but boxes
    fonts.sort(key=lambda font: (font.style != "normal", font.name))
    return next((font.name for font in fonts if _has(font.fname, character)), "")


def _has(path: str, character: str) -> bool:
    try:
        return font_manager.get_font(path).get_char_index(ord(character)) > 0
    except (OSError, RuntimeError):  # a font that cannot be read has nothing
        return False


# ---- blank figures and axes ----------------------------------------------------------------------------------------


class ShownFigure(Figure):
    """A figure that Jupyter shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return png_of(self)


def blank(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    figure = ShownFigure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def finite(value: Any) -> float:
    """A finite float, or NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def style_axes(axes: Axes, title: str) -> None:
    """What all charts have in common."""
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(labelsize=8, color="#BBBBBB", labelcolor="#555555", length=3)
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    axes.set_axisbelow(True)


# ---- grouped bars ---------------------------------------------------------------------------------------------------


def grouped_bars(
    title: str,
    label: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    guides: Mapping[str, float] | None = None,
) -> Figure:
    """One group of bars for every name in `groups`, one bar in it for every series; guides are named levels.

    Values that are not finite are left out. Raises UserError without groups or series.
    """
    if not groups or not series:
        raise UserError("There are no bars to draw; measure something first.")
    figure = blank(max(5.5, 1.6 + 0.24 * len(groups) * (len(series) + 1)), 3.6)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    style_axes(axes, title)
    width = 0.84 / len(series)
    colours = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#E69F00", PALE)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        heights = [finite(value) for value in values]
        axes.bar(places, heights, 0.92 * width, color=colours[number % len(colours)], label=name)
    for name, level in (guides or {}).items():
        axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(name, (1, level), (-2, 2), ("axes fraction", "data"), "offset points", fontsize=7.5, ha="right")
    axes.set_xticks(range(len(groups)), [textwrap.fill(group, 12) for group in groups])
    axes.set_ylabel(label, fontsize=8.5, color=INK)
    axes.set_ylim(bottom=0)
    figure.legend(
        fontsize=8, frameon=False, labelcolor=INK, ncols=2 if len(series) == 4 else 3, loc="outside lower center"
    )
    return figure


# ---- images on a page ----------------------------------------------------------------------------------------------


def _pixels(image: Tensor) -> UInt8[np.ndarray, "h w 3"]:
    """An image [3, h, w], uint8 or float in [0, 1], as matplotlib wants it."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float().nan_to_num().clamp(0, 1).mul(255).round().byte()
    return image.permute(1, 2, 0).numpy()


def put_picture(figure: Figure, image: Tensor, left: float, top: float, side: float, high: float | None = None) -> Axes:
    """Put an image on the figure, `left` and `top` inches from its corner, `side` wide (and `high`, where it is not
    square); pixels stay sharp squares."""
    width, height = figure.get_size_inches()
    high = high or side
    axes = figure.add_axes((left / width, 1 - (top + high) / height, side / width, high / height))
    axes.imshow(_pixels(image), interpolation="nearest", extent=(0, image.shape[2], image.shape[1], 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def drawable(text: str) -> str:
    """A text as a font can draw it: bytes of a file's name that are no UTF-8 become a question mark."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def put_words(figure: Figure, text: str, left: float, top: float, size: float = 9, **style: Any) -> None:
    """Put text on the figure, inches from its upper left corner."""
    width, height = figure.get_size_inches()
    style = {"color": INK, "va": "top", "ha": "left", **style}
    figure.text(left / width, 1 - top / height, drawable(text), fontsize=size, **style)
