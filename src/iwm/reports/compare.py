"""The table of several runs: their results side by side, the best marked, and which settings differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from iwm.evaluation.world import mrr
from iwm.reports.finding import Result, data_of, join, number, require_measured, settings_of, verb_of
from iwm.run_folder import EARLIER, RunFolder, plain_name, settings_of_weights
from iwm.runtime import fields
from iwm.runtime.console import console, in_words, tables_are_printed
from iwm.runtime.errors import UserError
from iwm.verbs.compare import Compare

HIGHER = (
    *("mrr", "mrr_calibrated", "mrr_common", "action_correlation"),
    *("hits_at_1", "hits_at_5", "hits_at_10", "top1", "top5", "balanced_top1", "average_top1"),
    *("miou", "pixel_accuracy", "last_block_top1"),
    *("crop_top1", "crop_mrr", "undo_known_top1", "undo_inferred_top1"),
)
LOWER = ("inferred_action_error",)
"""Metrics with a best value; controls (chance, baselines) and costs have none."""
OF_ONE_RUN = ("run.out", "run", "weights", "start")
"""Settings of runs and results that say which run it is: they are others of any two."""
SHOWN: dict[str, tuple[str, ...]] = {
    "world": mrr.SHOWN,
    "probe": (
        "top1", "top5", "balanced_top1", "random_encoder_top1", "last_block_top1", "random_encoder_last_block_top1",
        "raw_pixels_top1", "crop_top1", "crop_mrr", "mrr", "random_encoder_crop_top1", "raw_pixels_crop_top1",
        "target_top1", "undo_inferred_top1", "undo_known_top1",
    ),
    "finetune": ("top1", "top5", "trainable_parameters", "flops_per_image", "train_images_per_second"),
    "multitask": (
        "average_top1", "average_single_task_top1", "average_single_task_equal_updates_top1",
        "trainable_parameters", "single_task_trainable_parameters",
    ),
    "segment": ("miou", "pixel_accuracy", "random_encoder_miou", "majority_miou", "trainable_parameters"),
}  # fmt: skip
"""Rows of each verb; of any other verb, all its numbers."""


def compare(o: Compare) -> list[dict[str, Any]]:
    """Print the results of several runs in one table, the best value of a row marked, and which settings differ.

    Returns the rows: {"result", "data", "metric", "values": {run: number or None}, "earlier": [runs], "best": [runs]}.
    What was measured on earlier weights than a run now holds is said to be so, and is never the best. Raises UserError
    naming the run that is none, and when none of them has results.
    """
    runs = list(dict.fromkeys(o.runs))
    if not runs:
        raise UserError("Which runs? Give `iwm compare RUN RUN...`.")
    folders = {run: RunFolder.of(run) for run in runs}
    for run, folder in folders.items():
        require_measured(run, folder)
        folder.require("config", "metrics", "eval")
    results = {run: {result["file"]: result for result in folder.results()} for run, folder in folders.items()}
    if not any(results.values()):
        raise UserError(f"There are no results in {join(runs)}; measure something first, say `iwm world RUN --data S`.")
    rows = [row for file in sorted({file for own in results.values() for file in own}) for row in _rows(file, results)]
    names = _short(folders)
    if tables_are_printed():
        console.print(_table(rows, names))
    for run in runs:
        if not results[run]:
            console.print(Text(f"{run} has no results yet.", "yellow"), soft_wrap=True)
    for run in runs:
        if earlier := [file for file, result in results[run].items() if result.get(EARLIER)]:
            words = (
                f"{names[run]} holds other weights now than {join(earlier)} measured; measure again to compare them."
            )
            console.print(Text(words, "yellow"), soft_wrap=True)
    settings = {names[run]: folder.settings_unchecked() or settings_of_weights(run) for run, folder in folders.items()}
    of_runs = {name: fields.flatten(own) for name, own in settings.items() if own}
    _print_differences("Settings of the runs that differ", of_runs)
    for file in sorted({file for own in results.values() for file in own}):
        same = {names[run]: fields.flatten(settings_of(own[file])) for run, own in results.items() if file in own}
        _print_differences(f"Not quite comparable, {file} was measured with different", same)
    return rows


def _rows(file: str, results: Mapping[str, Mapping[str, Result]]) -> list[dict[str, Any]]:
    """The rows of the results of one name; `results` are those of every run, by their names."""
    here = {run: own[file] for run, own in results.items() if file in own}
    earlier = [run for run, result in here.items() if result.get(EARLIER)]
    first = next(iter(here.values()))
    title, data = file.removesuffix("-" + plain_name(data_of(first))), data_of(first)
    rows = []
    for metric in SHOWN.get(verb_of(first)) or _metrics(here.values()):
        values = {run: number(here.get(run, {}), metric) for run in results}
        if any(value is not None for value in values.values()):
            best = _best(metric, {run: value for run, value in values.items() if run not in earlier})
            row = {"result": title, "data": data, "metric": metric, "values": values, "earlier": earlier, "best": best}
            rows.append(row)
    return rows


def _metrics(results: Iterable[Result]) -> list[str]:
    """All numeric keys of some results, in order of appearance."""
    return list(dict.fromkeys(key for r in results for key in r if key != "seed" and number(r, key) is not None))


def _best(metric: str, values: Mapping[str, float | None]) -> list[str]:
    """The runs with the best value; none when there is nothing to compare."""
    known = {run: value for run, value in values.items() if value is not None}
    if len(known) < 2 or metric not in HIGHER + LOWER:
        return []
    best = max(known.values()) if metric in HIGHER else min(known.values())
    winners = [run for run, value in known.items() if value == best]
    return winners if len(winners) < len(known) else []


def _short(folders: Mapping[str, RunFolder]) -> dict[str, str]:
    """Column names: the folder's name, or the run as given where two would be called alike."""
    names = {run: folder.name for run, folder in folders.items()}
    alike = list(names.values())
    return {run: name if alike.count(name) == 1 else run for run, name in names.items()}


def _table(rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Table:
    """A line a metric, below the result and data that it is of; names of metrics stay whole in a narrow terminal."""
    table = Table(title="Results (* best)", title_justify="left")
    table.add_column("result, data, metric", no_wrap=True)
    for name in names.values():
        table.add_column(Text(name), justify="right", overflow="fold")
    before = None
    for row in rows:
        group = (row["result"], row["data"])
        if group != before:
            table.add_section()
            table.add_row(Text("\n".join(group), "bold"))
        cells = []
        for run, value in row["values"].items():
            marked = run in row["best"]
            mark = " *" if marked else " (earlier)" if run in row["earlier"] else ""
            text = "" if value is None else _value(row["metric"], value) + mark
            cells.append(Text(text, "bold green" if marked else ""))
        table.add_row(Text(f"  {row['metric']}"), *cells)
        before = group
    return table


def _value(metric: str, value: float) -> str:
    """A value in four digits or so: millions of parameters, billions of floating-point operations."""
    if metric.endswith("parameters"):
        return f"{value / 1e6:.3g} M"
    return f"{value / 1e9:.3g} G" if metric.endswith("flops_per_image") else in_words(value)


def _print_differences(title: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the names of the settings that are not the same everywhere, with their values in the order of the runs."""
    names = dict.fromkeys(name for values in settings.values() for name in values)
    differences = []
    for name in names:
        values = [own.get(name) for own in settings.values()]
        if name not in OF_ONE_RUN and any(value != values[0] for value in values):
            differences.append(f"{name} ({' | '.join(in_words(value) for value in values)})")
    if differences:
        console.print(Text(f"{title}: {', '.join(differences)}."))
