"""What a sweep says: MRR against accuracy (paper figure 4), the invariance-equivariance axis (figure 5), MRR by
conditioning, difficulty and capacity (tables 1 and 2), and guidance in words where the numbers support it.

It reads the rows of a sweep.json only, never a model or data. A row whose number is missing is left out of what needs
that number.
"""

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from iwm import files, pictures, report, results
from iwm.log import console
from iwm.pictures import BLUE, GREEN, GREY, INK, ORANGE
from iwm.verdict import Finding, join, number, standing

Row = Mapping[str, Any]

ACCURACIES = {
    "linear": "linear probe",
    "attentive": "attentive probe",
    "predictor_finetuning": "finetuned predictor",
}
"""The accuracies of a row, by key, and what they are called."""
COLOURS = {"none": GREY, "sequence": ORANGE, "feature": GREEN, "adaln": BLUE}
MARKERS = {"jitter": "o", "destructive": "s", "strong": "^"}
FEWEST = 4
"""Runs below which a correlation is not computed: any three points lie near some line."""

PAPER = "ImageNet-1k, ViT-B/16, 300 epochs"
PAPER_CORRELATIONS = {"linear": -0.85, "predictor_finetuning": 0.93}
PAPER_CONDITIONING = {"none": 0.00, "sequence": 0.82, "feature": 0.79}
PAPER_DIFFICULTY = {
    "12x384": {"jitter": 0.11, "destructive": 0.09, "strong": 0.81},
    "18x384": {"jitter": 0.25, "destructive": 0.79, "strong": 0.85},
}

# ---- numbers -------------------------------------------------------------------------------------------------------


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Pearson's r with its 95 % interval by Fisher's z, tanh(artanh r -+ 1.96 / sqrt(n - 3)).

    r is None with a "note" why below four points, or where one of the two does not vary.
    """
    n = len(x)
    if n < FEWEST:
        return {"r": None, "n": n, "interval": None, "note": f"n too small: {n} runs, {FEWEST} are needed"}
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if scale < 1e-12:
        return {"r": None, "n": n, "interval": None, "note": "one of the two is the same in all runs"}
    r = float(np.clip(a @ b / scale, -1, 1))
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), 1.959964 / math.sqrt(n - 3)
    return {"r": r, "n": n, "interval": [math.tanh(z - half), math.tanh(z + half)], "note": None}


def correlations(runs: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """MRR against each accuracy over the runs that have both (paper figure 4)."""
    found = {}
    for name in ACCURACIES:
        pairs = [
            (x, y) for run in runs if (x := number(run, "mrr")) is not None and (y := number(run, name)) is not None
        ]
        found[name] = correlation([x for x, _ in pairs], [y for _, y in pairs])
        found[name]["paper"] = PAPER_CORRELATIONS.get(name)
    return found


def tables(runs: Sequence[Row]) -> dict[str, Any]:
    """MRR by conditioning at the reference difficulty and predictor (table 1), and by difficulty x predictor at the
    reference conditioning (table 2), the paper's beside ours. The reference is the first run's."""
    if not runs:
        return {}
    first = runs[0]
    grid = [run for run in runs if run["recipe"] == first["recipe"]]

    def same(run: Row, *names: str) -> bool:
        return all(run[name] == first[name] for name in names)

    told = {run["conditioning"]: run["mrr"] for run in grid if same(run, "difficulty", "predictor")}
    hard: dict[str, dict[str, float | None]] = {}
    for run in grid:
        if same(run, "conditioning"):
            hard.setdefault(run["predictor"], {})[run["difficulty"]] = run["mrr"]
    return {
        "conditioning": {
            "difficulty": first["difficulty"],
            "predictor": first["predictor"],
            "mrr": {name: told[name] for name in COLOURS if name in told},
            "paper": PAPER_CONDITIONING,
        },
        "difficulty": {
            "conditioning": first["conditioning"],
            "mrr": {size: {level: row[level] for level in MARKERS if level in row} for size, row in hard.items()},
            "paper": PAPER_DIFFICULTY,
        },
        "paper_setting": PAPER,
    }


# ---- guidance ------------------------------------------------------------------------------------------------------


def guidance(runs: Sequence[Row]) -> list[Finding]:
    """What to take for which purpose; `good` is None where the numbers do not support a choice."""
    return [_which(runs), _finetuning(runs), _telling(runs), _correlated(runs)]


def _error(run: Row, name: str) -> float:
    """Standard error of a number over the images it was measured on."""
    if name == "mrr":
        return number(run, "mrr_standard_error") or 0.0
    top1, count = number(run, name), number(run, "n_val")
    return math.sqrt(top1 * (1 - top1) / count) if top1 is not None and count else 0.0


def _against(one: Row, other: Row, name: str) -> str:
    """'above', 'level with' or 'BELOW', two standard errors of the difference apart."""
    return standing(one[name], other[name], math.hypot(_error(one, name), _error(other, name)))


def _with(runs: Sequence[Row], *names: str) -> list[Row]:
    """The runs that have these numbers, the best in the first of them first."""
    have = [run for run in runs if all(number(run, name) is not None for name in names)]
    return sorted(have, key=lambda run: -run[names[0]])


def _which(runs: Sequence[Row]) -> Finding:
    """The trade-off itself: the best linear probe against the highest MRR."""
    title = "Invariant or equivariant?"
    by_linear, by_mrr = _with(runs, "linear", "mrr"), _with(runs, "mrr", "linear")
    if len(by_linear) < 2:
        return Finding(title, None, f"Too few runs to say: {len(by_linear)} with both MRR and a linear probe.")
    plain, told = by_linear[0], by_mrr[0]
    bars = tuple((f"{run['cell']} {what}", run[key]) for run in _different(plain, told) for key, what in _AXES)
    chance = number(told, "mrr_chance") or 0.0
    if standing(told["mrr"], chance, _error(told, "mrr")) != "above":
        words = f"No run is equivariant: the highest MRR, {told['mrr']:.3f}, is not above chance ({chance:.3f}). "
        words += f"The best linear probe is {plain['cell']} ({plain['linear']:.3f})."
        return Finding(title, None, words, bars)
    if plain is told:
        runner = by_linear[1]
        lead = "ahead of" if _against(plain, runner, "linear") == "above" else "within noise of"
        words = (
            f"These runs show no trade-off: {plain['cell']} has both the best linear probe ({plain['linear']:.3f}, "
            f"{lead} {runner['cell']} with {runner['linear']:.3f}) and the highest MRR ({told['mrr']:.3f})."
        )
        return Finding(title, None, words, bars)
    apart = _against(plain, told, "linear") == "above", _against(told, plain, "mrr") == "above"
    numbers = (
        f"{plain['cell']} (linear probe {plain['linear']:.3f}, MRR {plain['mrr']:.3f})",
        f"{told['cell']} (linear probe {told['linear']:.3f}, MRR {told['mrr']:.3f})",
    )
    if all(apart):
        words = f"For an invariant representation take {numbers[0]}; for an equivariant one take {numbers[1]}."
        return Finding(title, True, words, bars)
    near = join([what for differs, what in zip(apart, ("linear probe", "MRR"), strict=True) if not differs])
    words = (
        f"The numbers do not support a choice between {numbers[0]} and {numbers[1]}: in {near} they are within noise."
    )
    return Finding(title, None, words, bars)


_AXES = (("linear", "linear"), ("mrr", "MRR"))


def _different(*runs: Row) -> list[Row]:
    return [run for place, run in enumerate(runs) if all(run is not other for other in runs[:place])]


def _finetuning(runs: Sequence[Row]) -> Finding:
    """The run whose predictor is worth finetuning most."""
    title = "Which predictor to finetune?"
    ranked = _with(runs, "predictor_finetuning")
    if len(ranked) < 2:
        return Finding(title, None, f"Too few runs to say: {len(ranked)} with a finetuned predictor.")
    best, runner = ranked[:2]
    bars = tuple((run["cell"], run["predictor_finetuning"]) for run in ranked[:4])
    numbers = f"{best['cell']} ({best['predictor_finetuning']:.3f})", f"{runner['predictor_finetuning']:.3f}"
    if _against(best, runner, "predictor_finetuning") == "above":
        return Finding(title, True, f"Take {numbers[0]}; the next, {runner['cell']}, has {numbers[1]}.", bars)
    alike = [run for run in ranked[1:] if _against(best, run, "predictor_finetuning") == "level with"]
    others = join([run["cell"] for run in alike])
    words = f"The numbers do not single one out: {numbers[0]} is level, within noise, with {others}."
    return Finding(title, None, words, bars)


def _telling(runs: Sequence[Row]) -> Finding:
    """Whether and how the predictor should be told the action (table 1)."""
    title = "How to tell the predictor the action?"
    first = runs[0] if runs else {}
    same = ("recipe", "difficulty", "predictor")
    ranked = _with([run for run in runs if all(run[name] == first[name] for name in same)], "mrr")
    told = [run for run in ranked if run["conditioning"] != "none"]
    silent = [run for run in ranked if run["conditioning"] == "none"]
    bars = tuple((run["conditioning"], run["mrr"]) for run in ranked)
    if not told or len(ranked) < 2:
        return Finding(title, None, "Too few runs to say: two conditionings or more are needed.", bars)
    best = told[0]
    words = ""
    if silent:
        placed = _against(best, silent[0], "mrr")
        words = f"Told the action by {best['conditioning']}, MRR is {best['mrr']:.3f}; untold {silent[0]['mrr']:.3f}. "
        if placed != "above":
            return Finding(
                title, False, words + "Telling it has brought nothing so far: the predictors ignore it.", bars
            )
    if len(told) == 1:
        return Finding(title, True if silent else None, words + "No other way of telling was tried.", bars)
    runner = told[1]
    if _against(best, runner, "mrr") == "above":
        words += f"Take {best['conditioning']}: it is above {runner['conditioning']} ({runner['mrr']:.3f})."
        return Finding(title, True, words, bars)
    words += (
        f"Between {best['conditioning']} and {runner['conditioning']} ({runner['mrr']:.3f}) the numbers do not choose."
    )
    return Finding(title, True if silent else None, words, bars)


def _correlated(runs: Sequence[Row]) -> Finding:
    """What a high MRR goes with."""
    parts, supported = [], False
    for name, found in correlations(runs).items():
        called = ACCURACIES[name]
        if found["r"] is None:
            parts.append(f"{called}: not computed ({found['note']}).")
            continue
        low, high = found["interval"]
        numbers = f"r = {found['r']:+.2f}, 95 % from {low:+.2f} to {high:+.2f}, n = {found['n']}"
        sure = low > 0 or high < 0
        supported |= sure
        meaning = "rises with MRR" if low > 0 else "falls with MRR" if high < 0 else "no sign either way"
        parts.append(f"{called}: {meaning} ({numbers}).")
    words = " ".join(part[0].upper() + part[1:] for part in parts)
    return Finding("What goes with a high MRR?", True if supported else None, words)


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
    pictures._style(axes, title)
    return axes


def _percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def scatter(runs: Sequence[Row]) -> Figure:
    """The paper's figure 4: each accuracy against MRR, with Pearson's r and n."""
    figure = pictures._figure(11, 4.6)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(1, len(ACCURACIES))
    found = correlations(runs)
    for place, (name, called) in enumerate(ACCURACIES.items()):
        r, n, note = (found[name][key] for key in ("r", "n", "note"))
        said = f"r not computed: {note}" if r is None else f"r = {r:+.2f} (n = {n})"
        paper = found[name]["paper"]
        said += f"; paper {paper:+.2f}" if paper is not None else ""
        axes = _axes(figure, grid[place], f"{called[0].upper()}{called[1:]}\n{said}")
        shown = _with(runs, "mrr", name)
        if not shown:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            continue
        for run in shown:
            bars = {"xerr": _error(run, "mrr"), "yerr": _error(run, name), "elinewidth": 0.8}
            axes.errorbar(run["mrr"], run[name], **bars, **_look(run, runs[0]))
            if run["recipe"] != runs[0]["recipe"]:
                axes.annotate(run["cell"], (run["mrr"], run[name]), (6, 4), textcoords="offset points", fontsize=7)
        if r is not None:
            x, y = (np.array([run[key] for run in shown]) for key in ("mrr", name))
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
    shown = _with(runs, "mrr")[::-1]
    figure = pictures._figure(11, 1.5 + 0.3 * max(3, len(shown)))
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
        left.errorbar(run["mrr"], y, xerr=_error(run, "mrr"), elinewidth=0.8, **_look(run, runs[0]))
    chance = next((value for run in shown if (value := number(run, "mrr_chance")) is not None), None)
    if chance is not None:
        left.axvline(chance, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")
        left.legend(fontsize=8, frameon=False, labelcolor=INK)
    left.set_xlim(left=0)
    left.set_xlabel("MRR on the common bank", fontsize=8.5, color=INK)
    looks = zip(ACCURACIES.items(), ((BLUE, "o"), (GREEN, "D"), (ORANGE, "s")), strict=True)
    for (name, called), (colour, marker) in looks:
        have = [
            (run[name], y, _error(run, name))
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
    figure = pictures._figure(11, 3.9)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(1, 2, width_ratios=(1, 1.4))
    one, two = found["conditioning"], found["difficulty"]
    axes = _axes(figure, grid[0], f"MRR by conditioning ({one['difficulty']}, predictor {one['predictor']})")
    _group(axes, {name: one["mrr"].get(name) for name in COLOURS}, 0, 0.6, list(COLOURS.values()))
    published = [(place, one["paper"][name]) for place, name in enumerate(COLOURS) if name in one["paper"]]
    diamonds: dict[str, Any] = {"linestyle": "", "markerfacecolor": "white", "color": INK, "markersize": 6}
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
    for (size, row), marker, shift in zip(two["paper"].items(), ("D", "d"), (-0.42, 0.42), strict=True):
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
        figure.savefig(file, format="png", dpi=pictures.DPI)
        pngs[name] = file.getvalue()
        with files.replacing(folder / f"{name}.png") as part:
            part.write_bytes(pngs[name])
    path = folder / "sweep.html"
    files.write_text(path, _page(folder, content, pngs))
    return path


def _page(folder: Path, content: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    runs, settings, esc = content["runs"], content["settings"], report.esc
    done = sum(run["state"] == "finished" for run in runs)
    machine = content["hardware"]
    protocol = settings["protocol"]
    facts = [
        f"{done} of {len(runs)} runs finished",
        f"recipe {settings['recipe']}",
        f"images {settings['pretraining'].get('data.source')}",
        f"seed {settings['seed']}",
        f"MRR over {protocol['world_images']} images in banks of {protocol['bank']}",
        f"{machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}",
        str(content["date"]).replace("T", " ").replace("+00:00", " UTC"),
    ]
    cards = "".join(report.card(Finding(**finding)) for finding in content["guidance"])
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
        report.embedded(pngs["figure-5"], "wide", "Runs along the invariance-equivariance axis"),
        "<h2>MRR against accuracy (paper figure 4)</h2>",
        report.embedded(
            pngs["figure-4"],
            "wide",
            "Accuracies against MRR",
            f"Bars are one standard error. The paper's correlations are of {PAPER}; attentive: none given.",
        ),
        "<h2>Conditioning, difficulty, capacity (paper tables 1 and 2)</h2>",
        report.embedded(
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
    return report.page(f"Sweep {folder.resolve().name}", parts)


def _cell(value: Any) -> str:
    return {True: "healthy", False: "ill"}[value] if isinstance(value, bool) else results.in_words(value)


def _trouble(runs: Sequence[Row]) -> list[str]:
    """A sentence for what failed, was left out, or trained badly."""
    told = [f"{run['cell']} failed: {run['failed']}" for run in runs if run["failed"]]
    for run in runs:
        told += [f"{run['cell']}, {name}: {why}" for name, why in run["refused"].items()]
        told += [f"{run['cell']}: {run['health']}"] if run["healthy"] is False else []
    return told


def _table(rows: Sequence[Sequence[str]]) -> str:
    esc = report.esc
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
    rows = ([None if run[name] is None else run[name] for name in COLUMNS] for run in content["runs"])
    console.print(results.table("Sweep", COLUMNS, rows))
    for finding in content["guidance"]:
        console.print(f"{finding['title']} {finding['sentence']}", markup=False)
    console.print(f"Open {shlex.quote(str(folder / 'sweep.html'))}", soft_wrap=True, markup=False)
