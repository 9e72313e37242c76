"""Pictures of a run: training curves, a gallery of views and masks, and segmented images.

Every function returns a matplotlib figure of its own (no global state, so it is safe anywhere); `save` writes it.
Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

import colorsys
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from iwm.actions import ActionSpace
from iwm.masks import Masks
from iwm.runtime import files
from iwm.runtime.errors import UserError
from iwm.views import Views
from iwm.vit import Grid

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#222222"
DPI = 160


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    with files.replacing(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return path


def blank(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


# ---- curves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One small chart of the curves: which metrics, called what."""

    title: str
    lines: tuple[tuple[str, str, str], ...]
    """(key in metrics.jsonl, name in the legend, colour)."""
    guide: float | None = None
    """A level worth a thin line."""
    from_zero: bool = True
    """Whether the axis starts at 0, so that noise does not look like a trend."""


PANELS = (
    Panel(
        "Loss",
        (
            ("loss", "this run", BLUE),
            ("position_mean_loss", "knowing the position only", ORANGE),
            ("chance_loss", "knowing nothing of the image", ORANGE),
            ("identity_loss", "source left as it is", GREY),
        ),
        from_zero=False,
    ),
    Panel("Online probe (share of images right)", (("probe_top1", "", BLUE),)),
    Panel("RankMe (directions the features span)", (("rankme", "", BLUE),)),
    Panel("Target variance between images (share)", (("target_variance", "", BLUE),)),
    Panel("Action sensitivity (1 = moves as far as truth)", (("action_sensitivity", "", BLUE),), 1.0),
    Panel("Learning rate", (("lr", "", BLUE),)),
    Panel("EMA momentum of the target encoder", (("ema", "", BLUE),), from_zero=False),
    Panel("Speed (images per second)", (("images_per_second", "", BLUE),)),
)
"""The curves in reading order; the first is wide."""


def curves(lines: Sequence[dict[str, Any]]) -> Figure:
    """Small multiples of the lines of a metrics.jsonl against the training step; metrics not logged are left out.

    Values that are missing or not finite leave a gap. Raises UserError when there is no line.
    """
    if not lines:
        raise UserError("There are no metrics to draw; let the run reach its first log line.")
    panels = [panel for panel in PANELS if any(key in line for key, _, _ in panel.lines for line in lines)]
    if not panels:
        raise UserError("The metrics hold none of the known curves; give the metrics.jsonl of an `iwm pretrain`.")
    # The loss shares its row with the probe, or has it alone.
    loss = [panel for panel in panels if panel is PANELS[0]]
    probe = [panel for panel in panels if panel is PANELS[1]]
    others = [panel for panel in panels if panel not in loss + probe]
    rows = ([loss + probe] if loss or probe else []) + [others[i : i + 3] for i in range(0, len(others), 3)]
    figure = blank(10.5, 2.35 * len(rows) + 0.15)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    grid = figure.add_gridspec(len(rows), 3)
    steps = np.array([finite(line.get("step", number + 1)) for number, line in enumerate(lines)])
    for number, row in enumerate(rows):
        starts = [0, 2] if number == 0 and len(row) == 2 and row[0] is PANELS[0] else range(len(row))
        for start, panel in zip(starts, row, strict=True):
            wide = panel is PANELS[0]
            end = 3 if wide and len(row) == 1 else start + 2 if wide else start + 1
            axes = figure.add_subplot(grid[number, start:end])
            _draw(axes, panel, lines, steps)
            if number == len(rows) - 1:
                axes.set_xlabel("training step", fontsize=8.5, color=INK)
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


def _draw(axes: Axes, panel: Panel, lines: Sequence[dict[str, Any]], steps: Float[np.ndarray, " l"]) -> None:
    """One chart in the common style."""
    style_axes(axes, panel.title)
    shown: list[np.ndarray] = []
    for key, name, colour in panel.lines:
        values = np.array([finite(line.get(key)) for line in lines])
        known = np.isfinite(values) & np.isfinite(steps)
        if not known.any():
            continue
        # A metric logged on few lines (the probe) is joined over the others; a non-finite one shows as a gap.
        logged = np.array([key in line for line in lines])
        marker = "o" if known.sum() < 25 else ""
        axes.plot(
            steps[logged], values[logged], color=colour, linewidth=1.6, marker=marker, markersize=3, label=name or None
        )
        shown.append(values[known])
    if not shown:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    everything = np.concatenate(shown)
    if everything.min() > 0 and everything.max() > 100 * everything.min() and panel is PANELS[0]:
        axes.set_yscale("log")  # a loss that exploded would flatten the rest
    elif panel.from_zero and everything.min() >= 0:
        axes.set_ylim(0, 1.08 * max(everything.max(), panel.guide or 1e-9))
    if panel.guide is not None:
        axes.axhline(panel.guide, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
    # Every chart shows the whole run, from step 0, whatever is logged when.
    axes.set_xlim(0, 1.02 * max(np.nanmax(steps), 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if sum(bool(name) for _, name, _ in panel.lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper right", borderaxespad=0.1)
        if axes.get_yscale() == "linear":
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.16 * (high - low))  # room for the legend above the lines


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
    colours = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9")
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


def put_words(figure: Figure, text: str, left: float, top: float, size: float = 9, **style: Any) -> None:
    """Put text on the figure, inches from its upper left corner."""
    width, height = figure.get_size_inches()
    style = {"color": INK, "va": "top", "ha": "left", **style}
    figure.text(left / width, 1 - top / height, text, fontsize=size, **style)


def _veil(axes: Axes, image: Tensor, hidden: Bool[np.ndarray, " n"], grid: Grid, *, hatched: bool) -> None:
    """Cover patches of an image: hatched grey where nothing is seen, a pale haze where nothing is asked."""
    high, wide = image.shape[1] / grid[0], image.shape[2] / grid[1]
    places = [(place % grid[1] * wide, place // grid[1] * high) for place in np.flatnonzero(hidden)]
    covers = [Rectangle(place, wide, high) for place in places]
    if hatched:
        style = {"facecolor": "#C9C9C9", "edgecolor": "#8F8F8F", "hatch": "//////", "linewidth": 0.0}
    else:
        style = {"facecolor": (0.9, 0.9, 0.9, 0.88), "edgecolor": "none", "linewidth": 0.0}
    # Neighbouring patches share an edge; smoothing it would draw the grid as hairlines.
    axes.add_collection(PatchCollection(covers, antialiased=False, **style))


# ---- gallery -------------------------------------------------------------------------------------------------------


TWO_VIEWS = ("crop", "first view", "second view")
"""Columns of the gallery of a joint embedding."""


def gallery(
    crops: UInt8[Tensor, "b 3 h w"], views: Views, masks: Masks, space: ActionSpace, grid: Grid, count: int = 5
) -> Figure:
    """What training works on, for the first `count` images of a batch, with the action in words under each.

    From left to right: the crop; the source; what the student sees of it (dropped patches hatched); the target; the
    target's patches that are predicted. Of a joint embedding, which predicts nothing: the crop and both views. `grid`
    is the patch grid (height, width). Raises UserError without images.
    """
    count = min(count, len(crops))
    if count < 1:
        raise UserError("There are no images for the gallery; give a batch of at least one.")
    side, gap, margin, head, caption = 1.85, 0.14, 0.12, 0.36, 0.36
    row = side + caption
    patches = grid[0] * grid[1]
    asks = masks.predicted.shape[1] > 0
    columns = ("crop", "source", "what the student sees", "target", "predicted patches") if asks else TWO_VIEWS
    width = len(columns) * (side + gap) - gap
    figure = blank(2 * margin + width, head + count * row + 0.02)
    for number, name in enumerate(columns):
        put_words(figure, name, margin + number * (side + gap), 0.1, 10, weight="bold")
    for index in range(count):
        top = head + index * row
        dropped = _absent(masks.context[index], patches)
        unasked = _absent(masks.predicted[index], patches)
        source, target = views.source[index], views.target[index]
        shown = (crops[index], source, source, target, target) if asks else (crops[index], source, target)
        for number, image in enumerate(shown):
            axes = put_picture(figure, image, margin + number * (side + gap), top, side)
            if number == 2 and asks:
                _veil(axes, image, dropped, grid, hatched=True)
            elif number == 4:
                _veil(axes, image, unasked, grid, hatched=False)
        below = top + side + 0.06
        if not asks:
            put_words(figure, "To be embedded alike; nothing is masked or predicted", margin, below, 9)
            continue
        action = space.describe(views.action[index].detach().cpu())
        seen, asked = patches - int(dropped.sum()), patches - int(unasked.sum())
        put_words(figure, f"Action: {action}", margin, below, 9)
        put_words(
            figure,
            f"{seen} of {patches} seen, {asked} predicted",
            margin + width,
            below,
            9,
            ha="right",
            color="#555555",
        )
    return figure


def _absent(positions: Int64[Tensor, " c"], patches: int) -> Bool[np.ndarray, " n"]:
    """Which patches are not among the positions."""
    absent = np.ones(patches, dtype=bool)
    absent[positions.cpu().numpy()] = False
    return absent


# ---- segmented images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    """One segmented image; classes below 0 are pixels that do not count."""

    image: UInt8[Tensor, "3 h w"]
    truth: Int64[np.ndarray, "h w"]
    predicted: Int64[np.ndarray, "h w"]


def class_colours(count: int) -> Float[np.ndarray, "{count} 3"]:
    """A colour for every class: those of Okabe and Ito first, then hues a golden angle apart in changing lightness."""
    known = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#5A3E2B"][:count]
    colours = [tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)) for code in known]
    for number in range(count - len(known)):
        colours.append(
            colorsys.hls_to_rgb(0.618034 * number % 1, (0.35, 0.55, 0.75)[number % 3], (0.9, 0.6)[number % 2])
        )
    return np.array(colours).reshape(count, 3)


def overlays(shown: Sequence[Overlay], classes: Sequence[str], most: int = 24) -> Figure:
    """Image, truth and prediction side by side, classes as colours laid over a grey image; where the two differ, in
    black. Below them a legend of the (at most `most`) classes that cover the most pixels here.

    Pixels that do not count are white in truth and in the last column. Raises UserError without images.
    """
    if not shown:
        raise UserError("There are no segmented images to draw; give at least one.")
    colours = class_colours(len(classes))
    covered = np.zeros(len(classes))
    for each in shown:
        for kinds in (each.truth, each.predicted):
            covered += np.bincount(kinds[kinds >= 0], minlength=len(classes))
    order = np.argsort(-covered, kind="stable")[: int((covered > 0).sum())]
    named = np.sort(order[:most])
    tall = [each.image.shape[1] / each.image.shape[2] for each in shown]
    side, gap, margin, head, line = 2.3, 0.12, 0.14, 0.36, 0.22
    heights = [side * min(ratio, 2.0) for ratio in tall]
    columns, total = 4, 2 * margin + 4 * side + 3 * gap
    entries = [(colours[kind], classes[kind]) for kind in named]
    entries += [(np.ones(3), "does not count")] if any((each.truth < 0).any() for each in shown) else []
    left_out = len(order) - len(named)
    below = line * -(-len(entries) // columns) + (line if left_out else 0)
    figure = blank(total, head + sum(heights) + gap * len(shown) + below + 0.12)
    for number, name in enumerate(("image", "truth", "prediction", "mistakes (black)")):
        put_words(figure, name, margin + number * (side + gap), 0.1, 10, weight="bold")
    top = head
    for each, height in zip(shown, heights, strict=True):
        wrong = (each.truth != each.predicted) & (each.truth >= 0)
        right = np.where(wrong[..., None], 0.0, 1.0).repeat(3, axis=2)
        right[~wrong & (each.truth >= 0)] = 0.82
        panels = (
            each.image,
            _coloured(each.image, each.truth, colours),
            _coloured(each.image, each.predicted, colours),
            torch.from_numpy(right).permute(2, 0, 1),
        )
        for number, panel in enumerate(panels):
            put_picture(figure, panel, margin + number * (side + gap), top, side, height)
        top += height + gap
    step = (total - 2 * margin) / columns
    for number, (colour, name) in enumerate(entries):
        left, down = margin + number % columns * step, top + number // columns * line
        swatch = torch.from_numpy(colour)[:, None, None].expand(3, 2, 2)
        axes = put_picture(figure, swatch, left, down + 0.02, 0.15)
        axes.spines[:].set(visible=True, color="#888888", linewidth=0.6)
        put_words(figure, textwrap.shorten(str(name), 28, placeholder="..."), left + 0.22, down, 8.5)
    if left_out:
        put_words(figure, f"and {left_out} rarer classes", margin, top + line * -(-len(entries) // columns), 8.5)
    return figure


def _coloured(
    image: UInt8[Tensor, "3 h w"], kinds: Int64[np.ndarray, "h w"], colours: Float[np.ndarray, "c 3"]
) -> Float[Tensor, "3 h w"]:
    """The colours of its classes, darker where the image is dark: mixed with grey, two blues would look alike."""
    grey = image.float().mean(dim=0).div(255).numpy()[..., None]
    painted = np.where((kinds < 0)[..., None], 1.0, colours[np.maximum(kinds, 0)] * (0.65 + 0.35 * grey))
    return torch.from_numpy(painted).permute(2, 0, 1)
