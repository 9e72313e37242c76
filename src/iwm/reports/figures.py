"""The curves of a training, as matplotlib figures of their own (no global state, so they are safe anywhere).

Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from iwm.runtime.drawing import BLUE, GREY, INK, ORANGE, PALE, blank, finite, style_axes
from iwm.runtime.errors import UserError

# ---- curves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One small chart of the curves: which metrics, called what."""

    title: str
    lines: tuple[tuple[str, str, str], ...]
    """(key in metrics.jsonl, name in the legend, colour); of a metric with several values each is a line, numbered."""
    guide: float | None = None
    """A level worth a thin line."""
    from_zero: bool = True
    """Whether the axis starts at 0, so that noise does not look like a trend."""


PANELS = (
    Panel(
        "Loss on the images of health",
        (
            ("health_loss", "this run, masked source", BLUE),
            ("loss", "training batches, all terms", PALE),
            ("position_mean_loss", "knowing the position only", ORANGE),
            ("chance_loss", "knowing nothing of the image", ORANGE),
            ("identity_loss", "whole source as it is", GREY),
        ),
        from_zero=False,
    ),
    Panel("Online probe (share of images right)", (("probe_top1", "", BLUE),)),
    Panel("RankMe (directions spanned)", (("rankme", "features", BLUE), ("target_rankme", "targets", ORANGE))),
    Panel("Target variance between images (share)", (("target_variance", "", BLUE),)),
    Panel(
        "Targets predictable from... (R2)",
        (
            ("target_pixel_r2", "pixels, position", BLUE),
            ("target_position_share", "position", ORANGE),
            ("target_pixel_r2_blocks", "block 1, 2...", PALE),
        ),
    ),
    Panel(
        "Photometric share (0 invariant, 2 unrelated)",
        (("photometric_share", "targets", BLUE), ("photometric_share_last", "last block", ORANGE)),
    ),
    Panel("Action sensitivity (1 = moves as far as truth)", (("action_sensitivity", "", BLUE),), 1.0),
    Panel(
        "Predicted on true change (1 = all)",
        (("action_slope", "slope", BLUE), ("action_correlation", "correlation", ORANGE)),
        1.0,
    ),
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


SMALL = {"fontsize": 7, "color": INK, "va": "center"}


def _numbers(lines: Sequence[dict[str, Any]], key: str) -> list[Float[np.ndarray, " l"]]:
    """A metric's values along the run, NaN where it is missing; of one with several values a row for each."""
    found = [line[key] if isinstance(line.get(key), list) else [line.get(key)] for line in lines]
    count = max(map(len, found))
    return [np.array([finite(row[i] if i < len(row) else None) for row in found]) for i in range(count)]


def _draw(axes: Axes, panel: Panel, lines: Sequence[dict[str, Any]], steps: Float[np.ndarray, " l"]) -> None:
    """One chart in the common style."""
    style_axes(axes, panel.title)
    shown: list[np.ndarray] = []
    for key, name, colour in panel.lines:
        # A metric logged on few lines (the probe) is joined over the others; a non-finite one shows as a gap.
        logged = np.array([key in line for line in lines])
        several = _numbers(lines, key)
        for number, values in enumerate(several):
            known = np.isfinite(values) & np.isfinite(steps)
            if not known.any():
                continue
            style = {"marker": "o" if known.sum() < 25 else "", "markersize": 3, "linewidth": 1.6}
            label = name if name and not number else None
            axes.plot(steps[logged], values[logged], color=colour, label=label, **style)
            if len(several) > 1:
                end = np.flatnonzero(known)[-1]
                axes.annotate(str(number + 1), (steps[end], values[end]), (3, 0), textcoords="offset points", **SMALL)
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
        room = 1.2 if len(panel.lines) > 2 else 1.08  # for the legend above the lines
        axes.set_ylim(0, room * max(everything.max(), panel.guide or 1e-9))
    if panel.guide is not None:
        axes.axhline(panel.guide, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
    # Every chart shows the whole run, from step 0, whatever is logged when.
    axes.set_xlim(0, 1.02 * max(np.nanmax(steps), 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if sum(bool(name) for _, name, _ in panel.lines) > 1:
        narrow = {"handlelength": 1.5, "columnspacing": 1.2, "borderaxespad": 0.1}
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper right", **narrow)
        if axes.get_yscale() == "linear":
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.16 * (high - low))  # room for the legend above the lines
