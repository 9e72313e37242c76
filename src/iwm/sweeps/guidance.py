"""What the runs of a sweep say: correlations of MRR with accuracy (paper figure 4), MRR by conditioning, difficulty and
capacity (tables 1 and 2), and in words which run is ahead. A sweep trains every cell once, with one seed, so nothing is
decided: the errors here are over test images, and another pretraining may differ by more.

It reads the rows of a sweep.json only, never a model or data. A row whose number is missing is left out of what needs
that number.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from iwm.evaluation.uncertainty import accuracy_error, combined_error, correlation_interval, standing
from iwm.model.conditioning import CONDITIONINGS, Conditioning
from iwm.reports.finding import Finding, join, number
from iwm.sweeps.axes import LEVELS

Row = Mapping[str, Any]

ACCURACIES = {
    "linear": "linear probe",
    "attentive": "attentive probe",
    "predictor_finetuning": "finetuned predictor",
}
"""The accuracies of a row, by key, and what they are called."""
FEWEST = 4
"""Runs below which a correlation is not computed: any three points lie near some line."""

PAPER = "ImageNet-1k, ViT-B/16, 300 epochs"
PAPER_CORRELATIONS = {"linear": -0.85, "predictor_finetuning": 0.93}
PAPER_DIFFICULTY = {
    "12x384": {"jitter": 0.11, "destructive": 0.09, "strong": 0.81},
    "18x384": {"jitter": 0.25, "destructive": 0.79, "strong": 0.85},
}

ONE = "This is of one pretraining each; another seed may turn it round."
"""Stands after whatever one cell has over another: errors over images say nothing of other pretrainings."""

# ---- numbers -------------------------------------------------------------------------------------------------------


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Pearson's r with its 95 % interval.

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
    return {"r": r, "n": n, "interval": list(correlation_interval(r, n)), "note": None}


def correlations(runs: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """MRR against each accuracy over the runs of the first one's recipe that have both (paper figure 4); the MRR of
    other recipes may be measured in another space."""
    by_accuracy = {}
    for name in ACCURACIES:
        both = [run for run in with_numbers(runs, "mrr", name) if run["recipe"] == runs[0]["recipe"]]
        numbers = correlation([run["mrr"] for run in both], [run[name] for run in both])
        by_accuracy[name] = numbers | {"paper": PAPER_CORRELATIONS.get(name)}
    return by_accuracy


def tables(runs: Sequence[Row]) -> dict[str, Any]:
    """MRR by conditioning at the reference difficulty and predictor (table 1), and by difficulty x predictor at the
    reference conditioning (table 2), the paper's beside ours. The reference is the first run's."""
    if not runs:
        return {}
    first = runs[0]
    of_one_size = _alike(runs, "recipe", "difficulty", "predictor", "invariance")
    by_conditioning = {run["conditioning"]: run["mrr"] for run in of_one_size}
    hard: dict[str, dict[str, float | None]] = {}
    for run in _alike(runs, "recipe", "conditioning", "invariance"):
        hard.setdefault(run["predictor"], {})[run["difficulty"]] = run["mrr"]
    return {
        "conditioning": {
            "difficulty": first["difficulty"],
            "predictor": first["predictor"],
            "mrr": {name: by_conditioning[name] for name in columns(by_conditioning) if name in by_conditioning},
            "paper": {name: kind.paper_mrr for name, kind in CONDITIONINGS.items() if kind.paper_mrr is not None},
        },
        "difficulty": {
            "conditioning": first["conditioning"],
            "mrr": {size: {level: row[level] for level in LEVELS if level in row} for size, row in hard.items()},
            "paper": PAPER_DIFFICULTY,
        },
        "paper_setting": PAPER,
    }


def uses_action(conditioning: str | None) -> bool:
    """Whether the predictor of such a run is told the action; so it is taken where the name is not known here."""
    return CONDITIONINGS.get(conditioning or "", Conditioning).uses_action


def columns(names: Iterable[str | None]) -> list[str]:
    """The conditionings of a table: all that are known here, then those of these runs that are not."""
    return list(dict.fromkeys([*CONDITIONINGS, *(name for name in names if name)]))


def precision_note(runs: Sequence[Row], present: str) -> str | None:
    """A sentence where results are of unlike precision, or of another than this machine's `present` (empty where that
    is not known); it names the cells."""
    cells: dict[str, list[str]] = {}
    for run in runs:
        if run.get("precision"):
            cells.setdefault(run["precision"], []).append(run["cell"])
    measured = "; ".join(f"{', '.join(names)} in {precision}" for precision, names in cells.items())
    if len(cells) > 1 or not cells.keys() <= {"fp32", "bf16"}:
        return (
            f"The cells were not measured in one precision: {measured}. Give --speed.precision fp32 or bf16, and what "
            "is of the other is measured again."
        )
    if present and not cells.keys() <= {present}:
        (there,) = cells
        return (
            f"Measured were {measured}, and here it would be {present}; give --speed.precision {there} for the cells "
            "to come."
        )
    return None


# ---- guidance ------------------------------------------------------------------------------------------------------


def advise(runs: Sequence[Row]) -> list[Finding]:
    """Which run is ahead for which purpose. `good` is never True, for every cell is one pretraining; it is False where
    a predictor ignores what it is told."""
    return [_which(runs), _finetuning(runs), _telling(runs), *_dial(runs), _correlated(runs)]


def _alike(runs: Sequence[Row], *names: str) -> list[Row]:
    """The runs that are in these things as the first one."""
    return [run for run in runs if all(run.get(name) == runs[0].get(name) for name in names)]


def error_of(run: Row, name: str) -> float:
    """Standard error of a number over the images it was measured on."""
    if name == "mrr":
        return number(run, "mrr_standard_error") or 0.0
    top1, count = number(run, name), number(run, "n_val")
    return accuracy_error(top1, count) if top1 is not None and count else 0.0


def _against(one: Row, other: Row, name: str) -> str:
    """'above', 'level with' or 'BELOW' on these images: two standard errors of the difference over them apart."""
    return standing(one[name], other[name], combined_error(error_of(one, name), error_of(other, name)))


def with_numbers(runs: Sequence[Row], *names: str) -> list[Row]:
    """The runs that have these numbers, the best in the first of them first."""
    complete = [run for run in runs if all(number(run, name) is not None for name in names)]
    return sorted(complete, key=lambda run: -run[names[0]])


def _which(runs: Sequence[Row]) -> Finding:
    """The trade-off itself: the best linear probe of all against the highest MRR of the first run's recipe (others may
    have theirs in another space, or none)."""
    title = "Invariant or equivariant?"
    own = [run for run in runs if run["recipe"] == runs[0]["recipe"]]
    by_linear, by_mrr = with_numbers(runs, "linear"), with_numbers(own, "mrr", "linear")
    if len(by_linear) < 2 or not by_mrr:
        return Finding(title, None, f"Too few runs to say: {len(by_mrr)} with both MRR and a linear probe.")
    invariant, equivariant = by_linear[0], by_mrr[0]
    comparable = number(invariant, "mrr") is not None and invariant["recipe"] == equivariant["recipe"]
    bars = [(f"{run['cell']} linear", run["linear"]) for run in _different(invariant, equivariant)]
    bars += [
        (f"{run['cell']} MRR", run["mrr"]) for run in _different(*([invariant] if comparable else []), equivariant)
    ]
    chance = number(equivariant, "mrr_chance") or 0.0
    if standing(equivariant["mrr"], chance, error_of(equivariant, "mrr")) != "above":
        words = f"No run is equivariant: the highest MRR, {equivariant['mrr']:.3f}, is not above chance "
        words += f"({chance:.3f}). The best linear probe is {invariant['cell']} ({invariant['linear']:.3f})."
        return Finding(title, None, words, tuple(bars))
    if invariant is equivariant:
        runner = by_linear[1]
        lead = "ahead of" if _against(invariant, runner, "linear") == "above" else "within noise of"
        words = (
            f"These runs show no trade-off: {invariant['cell']} has both the best linear probe "
            f"({invariant['linear']:.3f}, {lead} {runner['cell']} with {runner['linear']:.3f}) and the highest MRR "
            f"({equivariant['mrr']:.3f}). {ONE}"
        )
        return Finding(title, None, words, tuple(bars))
    ranked = f", MRR {invariant['mrr']:.3f}" if comparable else ""
    numbers = (
        f"{invariant['cell']} (linear probe {invariant['linear']:.3f}{ranked})",
        f"{equivariant['cell']} (linear probe {equivariant['linear']:.3f}, MRR {equivariant['mrr']:.3f})",
    )
    apart = (
        _against(invariant, equivariant, "linear") == "above",
        not comparable or _against(equivariant, invariant, "mrr") == "above",
    )
    if all(apart):
        words = f"On these images the most invariant is {numbers[0]}, the most equivariant {numbers[1]}. {ONE}"
        return Finding(title, None, words, tuple(bars))
    near = join([what for differs, what in zip(apart, ("linear probe", "MRR"), strict=True) if not differs])
    words = (
        f"The numbers do not support a choice between {numbers[0]} and {numbers[1]}: in {near} they are within noise."
    )
    return Finding(title, None, words, tuple(bars))


def _different(*runs: Row) -> list[Row]:
    return [run for place, run in enumerate(runs) if all(run is not other for other in runs[:place])]


def _finetuning(runs: Sequence[Row]) -> Finding:
    """The run whose predictor is worth finetuning most."""
    title = "Which predictor to finetune?"
    ranked = with_numbers(runs, "predictor_finetuning")
    if len(ranked) < 2:
        return Finding(title, None, f"Too few runs to say: {len(ranked)} with a finetuned predictor.")
    best, runner = ranked[:2]
    bars = tuple((run["cell"], run["predictor_finetuning"]) for run in ranked[:4])
    numbers = f"{best['cell']} ({best['predictor_finetuning']:.3f})", f"{runner['predictor_finetuning']:.3f}"
    if _against(best, runner, "predictor_finetuning") == "above":
        words = f"On these images {numbers[0]} is ahead of the next, {runner['cell']} ({numbers[1]}). {ONE}"
        return Finding(title, None, words, bars)
    alike = [run for run in ranked[1:] if _against(best, run, "predictor_finetuning") == "level with"]
    others = join([run["cell"] for run in alike])
    words = f"The numbers do not single one out: {numbers[0]} is level, within noise, with {others}."
    return Finding(title, None, words, bars)


def _telling(runs: Sequence[Row]) -> Finding:
    """Whether and how the predictor should be told the action (table 1)."""
    title = "How to tell the predictor the action?"
    ranked = with_numbers(_alike(runs, "recipe", "difficulty", "predictor", "invariance"), "mrr")
    conditioned = [run for run in ranked if uses_action(run["conditioning"])]
    unconditioned = [run for run in ranked if not uses_action(run["conditioning"])]
    bars = tuple((run["conditioning"], run["mrr"]) for run in ranked)
    if not conditioned or len(ranked) < 2:
        return Finding(title, None, "Too few runs to say: two conditionings or more are needed.", bars)
    best = conditioned[0]
    words = ""
    if unconditioned:
        place = _against(best, unconditioned[0], "mrr")
        words = f"Told the action by {best['conditioning']}, MRR is {best['mrr']:.3f}; "
        words += f"untold {unconditioned[0]['mrr']:.3f}. "
        if place != "above":
            return Finding(
                title, False, words + "Telling it has brought nothing so far: the predictors ignore it.", bars
            )
    if len(conditioned) == 1:
        return Finding(title, None, f"{words}No other way of telling was tried. {ONE}", bars)
    runner = conditioned[1]
    if _against(best, runner, "mrr") == "above":
        ahead = f"On these images {best['conditioning']} ({best['mrr']:.3f}) is ahead of {runner['conditioning']}"
        return Finding(title, None, f"{words}{ahead} ({runner['mrr']:.3f}). {ONE}", bars)
    words += (
        f"Between {best['conditioning']} and {runner['conditioning']} ({runner['mrr']:.3f}) the numbers do not choose."
    )
    return Finding(title, None, f"{words} {ONE}" if unconditioned else words, bars)


def _dial(runs: Sequence[Row]) -> list[Finding]:
    """Whether the weight of the invariance term moves linear probe and MRR against each other; nothing where it was
    not varied."""
    alike = _alike(runs, "recipe", "conditioning", "difficulty", "predictor")
    ordered = sorted(with_numbers(alike, "mrr", "linear"), key=lambda run: run.get("invariance") or 0.0)
    if not ordered or ordered[0].get("invariance") == ordered[-1].get("invariance"):
        return []
    low, high = ordered[0], ordered[-1]
    linear, mrr = _against(high, low, "linear"), _against(high, low, "mrr")
    words = (
        f"From weight {low['invariance']:g} to {high['invariance']:g} the linear probe goes from {low['linear']:.3f} "
        f"to {high['linear']:.3f} ({linear}), MRR from {low['mrr']:.3f} to {high['mrr']:.3f} ({mrr}). {ONE}"
    )
    bars = [(f"weight {run['invariance']:g} linear", run["linear"]) for run in ordered]
    bars += [(f"weight {run['invariance']:g} MRR", run["mrr"]) for run in ordered]
    return [Finding("Does the dial trade MRR for the linear probe?", None, words, tuple(bars))]


def _correlated(runs: Sequence[Row]) -> Finding:
    """What a high MRR goes with. The interval takes the runs for independent, which they are not."""
    parts, supported = [], False
    for name, figures in correlations(runs).items():
        called = ACCURACIES[name]
        if figures["r"] is None:
            parts.append(f"{called}: not computed ({figures['note']}).")
            continue
        low, high = figures["interval"]
        numbers = f"r = {figures['r']:+.2f}, 95 % from {low:+.2f} to {high:+.2f}, n = {figures['n']}"
        sure = low > 0 or high < 0
        supported |= sure
        meaning = "rises with MRR" if low > 0 else "falls with MRR" if high < 0 else "no sign either way"
        parts.append(f"{called}: {meaning} ({numbers}).")
    words = " ".join(part[0].upper() + part[1:] for part in parts)
    if supported:
        words += " All runs share a seed and test images, so this suggests and does not decide."
    return Finding("What goes with a high MRR?", None, words)
