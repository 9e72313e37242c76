"""The pictures and the page of a sweep: MRR against accuracy (paper figure 4), the runs on the invariance-equivariance
axis (figure 5), MRR by conditioning, difficulty and capacity (tables 1 and 2), beside the paper's numbers."""

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from iwm.reports import page
from iwm.reports.verdict import join, number
from iwm.runtime import drawing, files
from iwm.runtime.console import console, in_words, table
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE
from iwm.sweeps.guidance import ACCURACIES, PAPER, Row, advise, correlations, error_of, with_numbers

COLOURS = {"none": GREY, "sequence": ORANGE, "feature": GREEN, "adaln": BLUE}
MARKERS = {"jitter": "o", "destructive": "s", "strong": "^"}

# ---- pictures ------------------------------------------------------------------------------------------------------


def _look(run: Row, first: Row) -> dict[str, Any]:
    """Colour: conditioning; shape: difficulty; a star: another recipe; hollow: another predictor."""
    other = run["recipe"] != first["recipe"]
    colour = INK if other else COLOURS.get(run["conditioning"], INK)
    hollow = not other and run["predictor"] != first["predictor"]
    return {
        "color": colour,
        "marker": "*" if other else MARKERS.get(run["difficulty"], "o"),
        "markersize": 10 if other else 7,
        "markerfacecolor": "white" if hollow else colour,
        "linestyle": "",
    }


def _key(runs: Sequence[Row]) -> list[Line2D]:
    """The legend's entries, of what the runs have only."""
    first, entries = runs[0], []
    grid = [run for run in runs if run["recipe"] == first["recipe"]]

    def entry(label: str, **look: Any) -> None:
        entries.append(Line2D([], [], linestyle="", label=label, markersize=7, **look))

    for name, colour in COLOURS.items():
        if any(run["conditioning"] == name for run in grid):
            entry(name, marker="o", color=colour)
    for name, marker in MARKERS.items():
        if any(run["difficulty"] == name for run in grid):
            entry(name, marker=marker, color=INK)
    for size in dict.fromkeys(run["predictor"] for run in grid):
        look = {} if size == first["predictor"] else {"markerfacecolor": "white"}
        if any(run["predictor"] != first["predictor"] for run in grid):
            entry(f"predictor {size}", marker="o", color=INK, **look)
    if len(grid) < len(runs):
        entry("another recipe", marker="*", color=INK)
    return entries


def _axes(figure: Figure, place: Any, title: str) -> Axes:
    axes = figure.add_subplot(place)
    drawing.style_axes(axes, title)
    return axes


def _percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))


def scatter(runs: Sequence[Row]) -> Figure:
    """The paper's figure 4: each accuracy against MRR, with Pearson's r and n."""
    figure = drawing.blank(11, 4.6)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(1, len(ACCURACIES))
    found = correlations(runs)
    for place, (name, called) in enumerate(ACCURACIES.items()):
        r, n, note = (found[name][key] for key in ("r", "n", "note"))
        said = note if r is None else f"r = {r:+.2f} (n = {n})"
        paper = found[name]["paper"]
        said += "\n" + (f"paper: r = {paper:+.2f}" if paper is not None else "paper: gives none")
        axes = _axes(figure, grid[place], f"{called[0].upper()}{called[1:]}\n{said}")
        shown = with_numbers(runs, "mrr", name)
        if not shown:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        for run in shown:
            bars = {"xerr": error_of(run, "mrr"), "yerr": error_of(run, name), "elinewidth": 0.8}
            axes.errorbar(run["mrr"], run[name], **bars, **_look(run, runs[0]))
            if run["recipe"] != runs[0]["recipe"]:
                axes.annotate(run["cell"], (run["mrr"], run[name]), (6, 4), textcoords="offset points", fontsize=7)
        if r is not None:
            grid_runs = [run for run in shown if run["recipe"] == runs[0]["recipe"]]
            x, y = (np.array([run[key] for run in grid_runs]) for key in ("mrr", name))
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=GREY, linewidth=1, zorder=0)
        control = next((value for run in runs if (value := number(run, "random_encoder_top1")) is not None), None)
        if name == "linear" and control is not None:
            axes.axhline(control, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate("random encoder", (1, control), (-2, 3), xycoords=("axes fraction", "data"), fontsize=7.5,
                          textcoords="offset points", ha="right", color=GREY)  # fmt: skip
        _percent(axes.yaxis)
        axes.margins(0.1)
        axes.set_xlabel("MRR (invariant left, equivariant right)", fontsize=8.5, color=INK)
        if not place:
            axes.set_ylabel("top-1", fontsize=8.5, color=INK)
    entries = _key(runs)
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 6), fontsize=8, frameon=False)
    return figure


def spectrum(runs: Sequence[Row]) -> Figure:
    """The paper's figure 5 in numbers: the runs along the invariance-equivariance axis, with what each is good for."""
    ranked = with_numbers(runs, "mrr")[::-1]
    # A joint embedding predicts nothing, so it has no place on the axis; it is trained to be invariant.
    joint = [run for run in with_numbers(runs, "linear") if run["predictor"] is None]
    shown = [*joint, *ranked]
    figure = drawing.blank(11, 1.5 + 0.3 * max(3, len(shown)))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(1, 2, width_ratios=(1, 1.15))
    left = _axes(figure, grid[0], "MRR: from invariant to equivariant")
    right = _axes(figure, grid[1], "Top-1: what it is good for")
    height = range(len(shown))
    for axes in (left, right):
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(height, [run["cell"] for run in shown] if axes is left else [], fontsize=8)
        axes.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    for y, run in zip(height, shown, strict=True):
        if number(run, "mrr") is None:
            left.annotate(
                "no world model", (0, y), (28, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
            )
        else:
            left.errorbar(run["mrr"], y, xerr=error_of(run, "mrr"), elinewidth=0.8, **_look(run, runs[0]))
    chance = next((value for run in shown if (value := number(run, "mrr_chance")) is not None), None)
    if chance is not None:
        left.axvline(chance, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")
        left.legend(fontsize=8, frameon=False, labelcolor=INK)
    left.set_xlim(left=0)
    left.set_xlabel("MRR on the common bank", fontsize=8.5, color=INK)
    looks = zip(ACCURACIES.items(), ((BLUE, "o"), (GREEN, "D"), (ORANGE, "s")), strict=True)
    for (name, called), (colour, marker) in looks:
        have = [
            (run[name], y, error_of(run, name))
            for y, run in zip(height, shown, strict=True)
            if number(run, name) is not None
        ]
        if have:
            x, y, error = zip(*have, strict=True)
            right.errorbar(x, y, xerr=error, color=colour, marker=marker, linestyle="", elinewidth=0.8, label=called)
    for y, run in zip(height, shown, strict=True):
        tops = [run[name] for name in ACCURACIES if number(run, name) is not None]
        if tops:
            right.plot([min(tops), max(tops)], [y, y], color="#D0D0D0", linewidth=1, zorder=0)
    if right.get_legend_handles_labels()[0]:
        right.legend(
            fontsize=8, frameon=False, labelcolor=INK, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    _percent(right.xaxis)
    return figure


def bars(found: Mapping[str, Any]) -> Figure:
    """Tables 1 and 2 of the paper: our MRR as bars, the paper's, from another scale, as hollow diamonds."""
    figure = drawing.blank(11, 3.9)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(1, 2, width_ratios=(1, 1.4))
    one, two = found["conditioning"], found["difficulty"]
    at = f"{in_words(one['difficulty'])}, predictor {one['predictor']}"
    axes = _axes(figure, grid[0], f"MRR by conditioning ({at})")
    _group(axes, {name: one["mrr"].get(name) for name in COLOURS}, 0, 0.6, list(COLOURS.values()))
    published = [(place, one["paper"][name]) for place, name in enumerate(COLOURS) if name in one["paper"]]
    diamonds: dict[str, Any] = {
        "linestyle": "",
        "markerfacecolor": "white",
        "color": INK,
        "markersize": 6,
        "clip_on": False,
    }
    axes.plot(*zip(*published, strict=True), marker="D", label=f"paper ({found['paper_setting']})", **diamonds)
    axes.set_xticks(range(len(COLOURS)), list(COLOURS))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="upper left")
    axes.set_ylim(0, 1.12)
    axes = _axes(figure, grid[1], f"MRR by difficulty and predictor ({two['conditioning']})")
    sizes = list(two["mrr"])
    wide = 0.7 / max(1, len(sizes))
    shades = (BLUE, "#7FB8D9", "#3D5A6C", "#C4DCEA")
    for number_, size in enumerate(sizes):
        shift = (number_ - (len(sizes) - 1) / 2) * wide
        rows = {level: two["mrr"][size].get(level) for level in MARKERS}
        _group(axes, rows, shift, wide * 0.92, [shades[number_ % len(shades)]] * len(rows), f"ours, {size}")
    for (size, row), marker, shift in zip(two["paper"].items(), ("D", "d"), (-0.4, 0.4), strict=True):
        places = [place + shift for place in range(len(MARKERS))]
        axes.plot(places, [row[level] for level in MARKERS], marker=marker, label=f"paper, {size}", **diamonds)
    axes.set_xticks(range(len(MARKERS)), list(MARKERS))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, ncols=2, loc="upper left")
    axes.set_ylim(0, 1.25)
    return figure


def _group(
    axes: Axes, rows: Mapping[str, float | None], shift: float, wide: float, colours: Sequence[str], label: str = ""
) -> None:
    """Bars with their numbers; 'not run' where there is none."""
    for place, (value, colour) in enumerate(zip(rows.values(), colours, strict=True)):
        known = value is not None
        axes.bar(place + shift, value or 0, wide, color=colour, label=None if place else label or None)
        text = f"{value:.2f}" if known else "not run"
        axes.text(place + shift, (value or 0) + 0.01, text, ha="center", fontsize=7.5, color=INK if known else GREY)


# ---- the page and the console --------------------------------------------------------------------------------------

COLUMNS = ("cell", "state", "mrr", "mrr_own_range", *ACCURACIES, "healthy")


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write DIR/figure-4.png, figure-5.png, tables.png and DIR/sweep.html, which holds them; returns the page."""
    runs = content["runs"]
    drawn = {"figure-4": scatter(runs), "figure-5": spectrum(runs), "tables": bars(content["tables"])}
    pngs = {}
    for name, figure in drawn.items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=drawing.DPI)
        pngs[name] = file.getvalue()
        with files.replacing(folder / f"{name}.png") as part:
            part.write_bytes(pngs[name])
    path = folder / "sweep.html"
    files.write_text(path, _page(folder, content, pngs))
    return path


def _page(folder: Path, content: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    runs, settings, esc = content["runs"], content["settings"], page.esc
    done = sum(run["state"] == "finished" for run in runs)
    machine = content["hardware"]
    protocol = settings["protocol"]
    facts = [
        f"{done} of {len(runs)} runs finished",
        f"recipe {settings['recipe']}",
        f"images {', '.join(Path(part).name for part in settings['pretraining']['data.source'].split(','))}",
        f"seed {settings['seed']}",
        f"MRR over {protocol['world_images']} images in banks of {protocol['bank']}",
        f"{machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}",
        str(content["date"]).replace("T", " ").replace("+00:00", " UTC"),
    ]
    cards = "".join(page.card(finding) for finding in advise(runs))
    first = runs[0]
    controls = [
        f"{called} {first[key]:.3f}"
        for key, called in (
            ("random_encoder_top1", "random encoder"),
            ("raw_pixels_top1", "raw pixels"),
            ("chance_top1", "chance"),
        )
        if first.get(key) is not None
    ]
    beside = f"Beside the linear probes: {join(controls)}. " if controls else ""
    parts = [
        "<h1>Sweep: invariance and equivariance</h1>",
        f'<p class="facts">{esc(" · ".join(facts))}</p>',
        f'<div class="cards">{cards}</div>',
        '<p class="soft">Noise is two standard errors over the images that were measured on. Every cell was trained '
        "once, so differences between seeds are not in it: repeat what matters with other seeds.</p>",
        "<h2>The spectrum (paper figure 5)</h2>",
        page.embedded(pngs["figure-5"], "wide", "Runs along the invariance-equivariance axis"),
        "<h2>MRR against accuracy (paper figure 4)</h2>",
        page.embedded(
            pngs["figure-4"],
            "wide",
            "Accuracies against MRR",
            f"Bars are one standard error. Stars, other recipes, are not in r. The paper's: {PAPER}; attentive: none.",
        ),
        "<h2>Conditioning, difficulty, capacity (paper tables 1 and 2)</h2>",
        page.embedded(
            pngs["tables"],
            "wide",
            "MRR by conditioning, and by difficulty and predictor",
            f"The diamonds are the paper's ({PAPER}): another scale, for orientation and not for comparison. MRR is on "
            "one bank for all runs, the range of the level `destructive`.",
        ),
        _conditioning_table(content["tables"]),
        _difficulty_table(content["tables"]),
        "<h2>All runs</h2>",
        f"<p>{esc(beside)}MRR on the common bank; own range: on a bank of the run's own strength.</p>",
        _table([COLUMNS, *([_cell(run[name]) for name in COLUMNS] for run in runs)]),
        *(f'<p class="soft">{esc(sentence)}</p>' for sentence in _trouble(runs)),
        f"<h2>Again</h2><p>The same command goes on where it stopped:</p><pre>{esc(content['command'])}</pre>",
    ]
    return page.page(f"Sweep {folder.resolve().name}", parts)


def _cell(value: Any) -> str:
    return {True: "healthy", False: "ill"}[value] if isinstance(value, bool) else in_words(value)


def _trouble(runs: Sequence[Row]) -> list[str]:
    """A sentence for what failed, was left out, or trained badly."""
    told = [f"{run['cell']} failed: {run['failed']}" for run in runs if run["failed"]]
    for run in runs:
        told += [f"{run['cell']}, {name}: {why}" for name, why in run["refused"].items()]
        told += [f"{run['cell']}: {run['health']}"] if run["healthy"] is False else []
    return told


def _table(rows: Sequence[Sequence[str]]) -> str:
    esc = page.esc
    head = "".join(f"<th>{esc(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _conditioning_table(found: Mapping[str, Any]) -> str:
    one = found["conditioning"]
    rows = [("ours", one["mrr"]), (f"paper ({found['paper_setting']})", one["paper"])]
    return _table([("MRR", *COLOURS), *((name, *(_cell(row.get(c)) for c in COLOURS)) for name, row in rows)])


def _difficulty_table(found: Mapping[str, Any]) -> str:
    two = found["difficulty"]
    rows = [(f"ours, {size}", row) for size, row in two["mrr"].items()]
    rows += [(f"paper, {size} ({found['paper_setting']})", row) for size, row in two["paper"].items()]
    return _table([("MRR", *MARKERS), *((name, *(_cell(row.get(c)) for c in MARKERS)) for name, row in rows)])


def show(content: Mapping[str, Any], folder: Path) -> None:
    """Print the runs as a table, the guidance in words, and where the page is."""
    shown = ("cell", "mrr", *ACCURACIES, "healthy")  # what 80 columns hold
    rows = ([run[name] if name != "healthy" else _cell(run[name]) for name in shown] for run in content["runs"])
    console.print(table("Sweep", ("run", "MRR", "linear", "attentive", "finetuned", "doctor"), rows))
    for finding in content["guidance"]:
        console.print(f"{finding['title']} {finding['sentence']}", markup=False)
    console.print(f"Open {shlex.quote(str(folder / 'sweep.html'))}", soft_wrap=True, markup=False)
