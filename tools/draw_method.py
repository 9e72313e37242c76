"""Draw docs/pictures/method.png, the picture of the method in README.md, with the package's own views and masks.

Usage: python tools/draw_method.py [FILE.png]

The photo is one of the embedded ones (CC BY 2.0, src/iwm/data/assets/LICENSES.md). The changes, the action between the
two views and the dropped patches are what training draws for it at one step.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

import iwm
from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.views import make_views
from iwm.data.crops import center
from iwm.model.masks import sample_masks
from iwm.runtime.drawing import BLUE, GREY, INK, ORANGE, blank, put_picture, put_words

FILE = Path(__file__).parent.parent / "docs" / "pictures" / "method.png"
PHOTO, STEP = 38, 25
"""An embedded validation photo, and a step that draws a clear change for it."""
SIZE, GRID = 112, (7, 7)
SIDE = 1.3
"""Side of a picture, inches."""
TOP, BOTTOM = 0.3, 2.4
"""Upper edges of the two rows, inches."""
UPPER, LOWER = TOP + SIDE / 2, BOTTOM + SIDE / 2
"""Middles of the two rows."""
LEFT = 0.12
VEIL = "#F7DFD0"
"""Colour of dropped patches, a pale version of the predictions' colour."""
COLUMNS = (1.75, 3.4, 6.0, 8.75)
"""Left edges of source and target, the visible patches, the encoder's tokens, the predictions."""


def grid_of(figure: Figure, left: float, top: float, shown: np.ndarray, colour: str) -> None:
    """Tokens as squares: those at the positions of `shown` in colour, the others as empty places."""
    axes = put_picture(figure, torch.ones(3, *GRID), left, top, SIDE)
    for place in range(GRID[0] * GRID[1]):
        corner = (place % GRID[1] + 0.1, place // GRID[1] + 0.1)
        face = colour if place in shown else "white"
        edge = colour if place in shown else "#E4E4E4"
        axes.add_patch(Rectangle(corner, 0.8, 0.8, facecolor=face, edgecolor=edge, linewidth=0.8))


def veil(axes: Axes, dropped: np.ndarray) -> None:
    """Cover the dropped patches of a picture."""
    side = SIZE / GRID[0]
    for place in dropped:
        corner = (place % GRID[1] * side, place // GRID[1] * side)
        axes.add_patch(Rectangle(corner, side, side, facecolor=VEIL, edgecolor=VEIL, linewidth=0.5))


def box(figure: Figure, text: str, left: float, top: float, width: float, colour: str, height: float = 0.62) -> None:
    """A network: a rounded box with its name."""
    wide, high = figure.get_size_inches()
    patch = FancyBboxPatch(
        (left / wide, 1 - (top + height) / high), width / wide, height / high, mutation_aspect=wide / high,
        boxstyle="round,pad=0,rounding_size=0.008", facecolor=colour, edgecolor="none",
    )  # fmt: skip
    figure.add_artist(patch)
    middle = (left + width / 2, top + height / 2)
    put_words(figure, text, *middle, 9.5, ha="center", va="center", color="white", weight="bold", linespacing=1.15)


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float], style: str = "-|>", **look) -> None:
    """An arrow between two points, inches from the upper left corner."""
    wide, high = figure.get_size_inches()
    points = [(x / wide, 1 - y / high) for x, y in (start, end)]
    look = {"color": INK, "linewidth": 1.3, "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, **look}
    figure.add_artist(FancyArrowPatch(*points, transform=figure.transFigure, arrowstyle=style, **look))


def draw() -> Figure:
    """The picture: the image, source and target, encoder, predictor with its action, teacher, loss."""
    space = ActionSpace.from_config(config.Actions(), SIZE)
    crop = center(iwm.open_images("sample", "val", size=SIZE).load(PHOTO), SIZE)[None]
    index = np.array([PHOTO])
    views = make_views(crop, space, config.Actions(), 0, STEP, index, "cpu")
    masks = sample_masks(config.Masks(), GRID, 0, STEP, index, "cpu")
    context, queries = masks.context[0].numpy(), masks.predicted[0].numpy()

    figure = blank(10.3, 4.0)
    middle = (TOP + BOTTOM) / 2
    put_picture(figure, crop[0], LEFT, middle, SIDE)
    put_words(figure, "an image", LEFT + SIDE / 2, middle + SIDE + 0.06, 9, ha="center")
    arrow(figure, (LEFT + SIDE * 0.72, middle - 0.02), (COLUMNS[0] - 0.06, UPPER))
    arrow(figure, (LEFT + SIDE * 0.72, middle + SIDE + 0.27), (COLUMNS[0] - 0.06, LOWER + 0.3))
    draw_student(figure, views.source[0], context, queries)
    draw_action(figure, space.describe(views.action[0]))
    draw_teacher(figure, views.target[0], queries)
    return figure


def draw_student(figure: Figure, source: Tensor, context: np.ndarray, queries: np.ndarray) -> None:
    """The upper row, from the source to the prediction."""
    for text, left in zip(("patches it may see", "tokens", "prediction"), COLUMNS[1:], strict=True):
        put_words(figure, text, left, TOP - 0.23, 9.5)
    put_words(figure, "source", COLUMNS[0], TOP - 0.23, 9.5, weight="bold")
    put_picture(figure, source, COLUMNS[0], TOP, SIDE)
    dropped = np.setdiff1d(np.arange(GRID[0] * GRID[1]), context)
    veil(put_picture(figure, source, COLUMNS[1], TOP, SIDE), dropped)
    arrow(figure, (COLUMNS[0] + SIDE + 0.05, UPPER), (COLUMNS[1] - 0.05, UPPER))
    for text, left, width, colour in (("encoder", COLUMNS[1], 0.92, BLUE), ("predictor", COLUMNS[2], 1.06, ORANGE)):
        start, following = left + SIDE, COLUMNS[COLUMNS.index(left) + 1]
        box(figure, text, start + 0.2, UPPER - 0.31, width, colour)
        arrow(figure, (start + 0.03, UPPER), (start + 0.19, UPPER))
        arrow(figure, (start + 0.21 + width, UPPER), (following - 0.04, UPPER))
    grid_of(figure, COLUMNS[2], TOP, context, BLUE)
    grid_of(figure, COLUMNS[3], TOP, queries, ORANGE)


def draw_action(figure: Figure, words: str) -> None:
    """What the predictor is told."""
    middle = COLUMNS[2] + SIDE + 0.73
    text = "the action, from source to target:\n" + words.replace(", saturation", ",\nsaturation")
    put_words(figure, text, middle - 0.1, TOP + SIDE + 0.13, 9, ha="right", color=ORANGE, linespacing=1.3)
    arrow(figure, (middle, TOP + SIDE + 0.3), (middle, UPPER + 0.33), color=ORANGE)


def draw_teacher(figure: Figure, target: Tensor, queries: np.ndarray) -> None:
    """The lower row, from the target to its tokens, and the loss between the rows."""
    put_words(figure, "target", COLUMNS[0], BOTTOM - 0.23, 9.5, weight="bold")
    put_picture(figure, target, COLUMNS[0], BOTTOM, SIDE)
    box(figure, "moving average\nof the encoder", COLUMNS[1] + 0.1, LOWER - 0.31, 1.55, GREY)
    arrow(figure, (COLUMNS[0] + SIDE + 0.05, LOWER), (COLUMNS[1] + 0.09, LOWER))
    arrow(figure, (COLUMNS[1] + 1.66, LOWER), (COLUMNS[3] - 0.05, LOWER))
    put_words(figure, "the target's tokens", COLUMNS[3] + SIDE, BOTTOM + SIDE + 0.06, 9.5, ha="right")
    grid_of(figure, COLUMNS[3], BOTTOM, queries, GREY)
    middle = COLUMNS[3] + SIDE / 2
    arrow(figure, (middle, TOP + SIDE + 0.05), (middle, BOTTOM - 0.05), "<|-|>")
    put_words(figure, "loss", middle + 0.1, (TOP + SIDE + BOTTOM) / 2, 9.5, va="center", weight="bold")


if __name__ == "__main__":
    path = Path(sys.argv[1]) if sys.argv[1:] else FILE
    draw().savefig(path, dpi=150, pil_kwargs={"optimize": True})
    print(path)
