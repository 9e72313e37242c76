"""The figures of a sweep: MRR against accuracy (paper figure 4), the runs on the invariance-equivariance axis
(figure 5), MRR by conditioning, difficulty and capacity (tables 1 and 2), beside the paper's numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from iwm.model.conditioning import CONDITIONINGS
from iwm.reports.finding import number
from iwm.runtime import drawing
from iwm.runtime.console import in_words
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE
from iwm.sweeps.guidance import ACCURACIES, Row, columns, correlations, error_of, with_numbers

COLOURS = (GREY, ORANGE, GREEN, BLUE, "#CC79A7", "#56B4E9", "#E69F00")
"""Of the conditionings, in the order of their table; INK for further ones and those that are not known here."""
MARKERS = {"jitter": "o", "destructive": "s", "strong": "^"}
"""Difficulties."""
ACCURACY_STYLES = {"linear": (BLUE, "o"), "attentive": (GREEN, "D"), "predictor_finetuning": (ORANGE, "s")}
SHADES = (BLUE, "#7FB8D9", "#3D5A6C", "#C4DCEA")
"""Predictor sizes."""
DASHES = (0, (4, 3))
DIAMOND: dict[str, Any] = {
    "linestyle": "",
    "markerfacecolor": "white",
    "color": INK,
    "markersize": 6,
    "clip_on": False,
}
"""The paper's numbers."""


def colour_of(conditioning: str | None) -> str:
    """The colour of a conditioning's runs."""
    return dict(zip(CONDITIONINGS, COLOURS, strict=False)).get(conditioning or "", INK)


def _sheet(height: float, columns: int, widths: Sequence[float] | None = None) -> tuple[Figure, Any]:
    """A blank figure and its grid of one row."""
    figure = drawing.blank(11, height)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure, figure.add_gridspec(1, columns, width_ratios=widths)


def _axes(figure: Figure, place: Any, title: str) -> Axes:
    axes = figure.add_subplot(place)
    drawing.style_axes(axes, title)
    return axes


def _percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


# ---- figure 4: MRR against accuracy --------------------------------------------------------------------------------


def scatter(runs: Sequence[Row]) -> Figure:
    """The paper's figure 4: each accuracy against MRR, with Pearson's r and n."""
    figure, grid = _sheet(4.6, len(ACCURACIES))
    by_accuracy = correlations(runs)
    for place, (name, label) in enumerate(ACCURACIES.items()):
        correlation = by_accuracy[name]
        r, paper = correlation["r"], correlation["paper"]
        ours = correlation["note"] if r is None else f"r = {r:+.2f} (n = {correlation['n']})"
        theirs = f"paper: r = {paper:+.2f}" if paper is not None else "paper: gives none"
        axes = _axes(figure, grid[place], f"{label[0].upper()}{label[1:]}\n{ours}\n{theirs}")
        rows = with_numbers(runs, "mrr", name)
        if not rows:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        _scatter_runs(axes, rows, name, runs[0])
        if r is not None:
            _regression(axes, [run for run in rows if run["recipe"] == runs[0]["recipe"]], name)
        if name == "linear":
            _random_encoder(axes, runs)
        _percent(axes.yaxis)
        axes.margins(0.1)
        axes.set_xlabel("MRR (invariant left, equivariant right)", fontsize=8.5, color=INK)
        if not place:
            axes.set_ylabel("top-1", fontsize=8.5, color=INK)
    entries = _legend(runs)
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 6), fontsize=8, frameon=False)
    return figure


def _scatter_runs(axes: Axes, runs: Sequence[Row], name: str, first: Row) -> None:
    """Every run with its errors; runs of another recipe by name."""
    for run in runs:
        axes.errorbar(
            run["mrr"],
            run[name],
            xerr=error_of(run, "mrr"),
            yerr=error_of(run, name),
            elinewidth=0.8,
            **_style(run, first),
        )
        if run["recipe"] != first["recipe"]:
            axes.annotate(run["cell"], (run["mrr"], run[name]), (6, 4), textcoords="offset points", fontsize=7)


def _regression(axes: Axes, runs: Sequence[Row], name: str) -> None:
    """The least-squares line through the runs."""
    x, y = (np.array([run[key] for run in runs]) for key in ("mrr", name))
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=GREY, linewidth=1, zorder=0)


def _random_encoder(axes: Axes, runs: Sequence[Row]) -> None:
    """The accuracy of the control as a level, where it was measured."""
    control = next((value for run in runs if (value := number(run, "random_encoder_top1")) is not None), None)
    if control is None:
        return
    axes.axhline(control, color=GREY, linewidth=0.9, linestyle=DASHES)
    axes.annotate(
        "random encoder",
        (1, control),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        fontsize=7.5,
        textcoords="offset points",
        ha="right",
        color=GREY,
    )


def _style(run: Row, first: Row) -> dict[str, Any]:
    """Colour: conditioning; shape: difficulty; a star: another recipe; hollow: another predictor."""
    other = run["recipe"] != first["recipe"]
    colour = INK if other else colour_of(run["conditioning"])
    hollow = not other and run["predictor"] != first["predictor"]
    return {
        "color": colour,
        "marker": "*" if other else MARKERS.get(run["difficulty"], "o"),
        "markersize": 10 if other else 7,
        "markerfacecolor": "white" if hollow else colour,
        "linestyle": "",
    }


def _legend(runs: Sequence[Row]) -> list[Line2D]:
    """The legend's entries, of what the runs have only."""
    first, entries = runs[0], []
    grid = [run for run in runs if run["recipe"] == first["recipe"]]

    def entry(label: str, **style: Any) -> None:
        entries.append(Line2D([], [], linestyle="", label=label, markersize=7, **style))

    for name in columns(run["conditioning"] for run in grid):
        if any(run["conditioning"] == name for run in grid):
            entry(name, marker="o", color=colour_of(name))
    for name, marker in MARKERS.items():
        if any(run["difficulty"] == name for run in grid):
            entry(name, marker=marker, color=INK)
    sizes = dict.fromkeys(run["predictor"] for run in grid)
    for size in sizes if len(sizes) > 1 else ():
        style = {} if size == first["predictor"] else {"markerfacecolor": "white"}
        entry(f"predictor {size}", marker="o", color=INK, **style)
    if len(grid) < len(runs):
        entry("another recipe", marker="*", color=INK)
    return entries


# ---- figure 5: the invariance-equivariance axis --------------------------------------------------------------------


def spectrum(runs: Sequence[Row]) -> Figure:
    """The paper's figure 5 in numbers: the runs along the invariance-equivariance axis, with what each is good for."""
    # A joint embedding predicts nothing, so it has no place on the axis; it is trained to be invariant.
    joint = [run for run in with_numbers(runs, "linear") if run["predictor"] is None]
    rows = [*joint, *with_numbers(runs, "mrr")[::-1]]
    figure, grid = _sheet(1.5 + 0.3 * max(3, len(rows)), 2, (1, 1.15))
    left = _axes(figure, grid[0], "MRR: from invariant to equivariant")
    right = _axes(figure, grid[1], "Top-1: what it is good for")
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [run["cell"] for run in rows] if axes is left else [], fontsize=8)
        axes.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    _mrr_column(left, rows, runs[0])
    _accuracy_column(right, rows)
    return figure


def _mrr_column(axes: Axes, rows: Sequence[Row], first: Row) -> None:
    """The MRR of every row with its error, and chance as a level."""
    for y, run in enumerate(rows):
        if number(run, "mrr") is None:
            axes.annotate(
                "no world model", (0, y), (28, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
            )
        else:
            axes.errorbar(run["mrr"], y, xerr=error_of(run, "mrr"), elinewidth=0.8, **_style(run, first))
    chance = next((value for run in rows if (value := number(run, "mrr_chance")) is not None), None)
    if chance is not None:
        axes.axvline(chance, color=GREY, linewidth=0.9, linestyle=DASHES, label="chance")
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    axes.set_xlim(left=0)
    axes.set_xlabel("MRR on the common bank", fontsize=8.5, color=INK)


def _accuracy_column(axes: Axes, rows: Sequence[Row]) -> None:
    """The accuracies of every row with their errors, and a line from the lowest to the highest."""
    for name, label in ACCURACIES.items():
        colour, marker = ACCURACY_STYLES[name]
        points = [(run[name], y, error_of(run, name)) for y, run in enumerate(rows) if number(run, name) is not None]
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, xerr=error, color=colour, marker=marker, linestyle="", elinewidth=0.8, label=label)
    for y, run in enumerate(rows):
        tops = [run[name] for name in ACCURACIES if number(run, name) is not None]
        if tops:
            axes.plot([min(tops), max(tops)], [y, y], color="#D0D0D0", linewidth=1, zorder=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    _percent(axes.xaxis)


# ---- tables 1 and 2 ------------------------------------------------------------------------------------------------


def bars(tables: Mapping[str, Any]) -> Figure:
    """Tables 1 and 2 of the paper: our MRR as bars, the paper's, from another scale, as hollow diamonds."""
    figure, grid = _sheet(3.9, 2, (1, 1.4))
    one, two = tables["conditioning"], tables["difficulty"]
    reference = f"{in_words(one['difficulty'])}, predictor {one['predictor']}"
    axes = _axes(figure, grid[0], f"MRR by conditioning ({reference})")
    _conditioning_bars(axes, one, f"paper ({tables['paper_setting']})")
    axes = _axes(figure, grid[1], f"MRR by difficulty and predictor ({two['conditioning']})")
    _difficulty_bars(axes, two)
    return figure


def _conditioning_bars(axes: Axes, table: Mapping[str, Any], label: str) -> None:
    """Table 1: one bar for each conditioning."""
    names = columns(table["mrr"])
    _bar_group(axes, {name: table["mrr"].get(name) for name in names}, 0, 0.6, [colour_of(name) for name in names])
    paper = [(place, table["paper"][name]) for place, name in enumerate(names) if name in table["paper"]]
    axes.plot(*zip(*paper, strict=True), marker="D", label=label, **DIAMOND)
    axes.set_xticks(range(len(names)), names)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="upper left")
    axes.set_ylim(0, 1.12)


def _difficulty_bars(axes: Axes, table: Mapping[str, Any]) -> None:
    """Table 2: for each difficulty, one bar for each predictor."""
    sizes = list(table["mrr"])
    width = 0.7 / max(1, len(sizes))
    for place, size in enumerate(sizes):
        shift = (place - (len(sizes) - 1) / 2) * width
        values = {level: table["mrr"][size].get(level) for level in MARKERS}
        _bar_group(axes, values, shift, width * 0.92, [SHADES[place % len(SHADES)]] * len(values), f"ours, {size}")
    for (size, row), marker, shift in zip(table["paper"].items(), ("D", "d"), (-0.4, 0.4), strict=True):
        places = [place + shift for place in range(len(MARKERS))]
        axes.plot(places, [row[level] for level in MARKERS], marker=marker, label=f"paper, {size}", **DIAMOND)
    axes.set_xticks(range(len(MARKERS)), list(MARKERS))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, ncols=2, loc="upper left")
    axes.set_ylim(0, 1.25)


def _bar_group(
    axes: Axes, values: Mapping[str, float | None], shift: float, width: float, colours: Sequence[str], label: str = ""
) -> None:
    """Bars with their numbers; 'not run' where there is none."""
    for place, (value, colour) in enumerate(zip(values.values(), colours, strict=True)):
        axes.bar(place + shift, value or 0, width, color=colour, label=None if place else label or None)
        text, ink = ("not run", GREY) if value is None else (f"{value:.2f}", INK)
        axes.text(place + shift, (value or 0) + 0.01, text, ha="center", fontsize=7.5, color=ink)
