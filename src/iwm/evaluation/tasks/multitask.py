"""One predictor for many tasks (`iwm.evaluation.tasks.shared_predictor`) beside one predictor for each.

The control is one predictor a task, finetuned from the same start under the same grid of learning rates. Where the
shared one takes S steps with batches of b images for T tasks, a task has two twins:

    equal total steps    S / T steps of b images each: as many steps in total, a T-th of the updates for each twin
    equal updates        S steps of b / T images each: as many updates as the shared predictor, T S steps in total
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iwm.data.sources import LabelledSplits, labelled_splits
from iwm.evaluation import ritual
from iwm.evaluation.grids import grid_ends
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.classifier import save_tasks
from iwm.evaluation.tasks.finetune import ClassificationWork, build
from iwm.evaluation.tasks.fitting import scores
from iwm.evaluation.tasks.probes import facts_of_source
from iwm.evaluation.tasks.shared_predictor import Task, Training, Tuned
from iwm.evaluation.uncertainty import accuracy_errors, is_unbalanced
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import drawing, errors
from iwm.runtime.console import console, show, table
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.verbs.multitask import Multitask
from iwm.verbs.shared import Classification

MOST = 8
"""Tasks of one predictor."""
TWINS = {"single_task": False, "single_task_equal_updates": True}
"""The twins of a task by the beginning of their keys: whether they take as many updates as the shared predictor."""
AVERAGES = ("top1", "single_task_top1", "single_task_equal_updates_top1", "chance")
LONGEST = 100
"""Bytes of the tasks' names in a file's name; beyond, their number stands there."""


def multitask(o: Multitask) -> dict[str, Any]:
    """Finetune one predictor of a RUN on 2 to 8 labelled sources, and its single-task twins; writes
    RUN/eval/multitask-PREDICTOR-NAMES.json with the weights in the folder of that name, returns the result.

    Raises UserError for bad input.
    """
    with ritual.evaluation("multitask", o) as work:
        sources, vals = parse_tasks(o.task), parse_tasks(o.val, "--val")
        check(o, sources, vals)
        model = work.world_model()
        size = o.size or model.settings.data.image_size
        _ = build(model, o, ("", ""), size)  # what cannot be built is an error before any work
        splits = {name: _splits(name, source, vals.get(name, ""), size) for name, source in sources.items()}
        tasks = _prepare(model, splits, o, size, work.session)
        shared = Training(model, tasks, o, tasks).run()
        together = "+".join(sources)
        data = together if len(together.encode()) <= LONGEST else f"{len(sources)}-tasks"
        settings = ritual.settings_of(o, Classification)
        outcome = Outcome(
            data=data,
            payload={
                "data": data,
                "predictor": o.predictor,
                **measure(shared, tasks, o),
                "encoder": features.name_of(o.student),
                "image_size": size,
                "augmentation": o.augmentation,
                "tokens_kept": tasks[0].work.tokens_kept,
            },
            settings={
                **settings,
                "tasks": ritual.identities(**sources),
                "vals": ritual.identities(**vals),
                "size": size,
            },
            variant=[o.predictor, "student" * o.student, f"seed{o.seed}" if o.seed else ""],
            weights=lambda folder: save_tasks(shared.classifiers, list(sources), model, folder, finetuned=settings),
        )
        rows = outcome.payload["tasks"]
        outcome = work.with_controls(outcome, lambda: measure_twins(model, tasks, o, rows))
        compared = outcome.payload["tasks"]
        return work.conclude(replace(outcome, figures={"": lambda: draw(compared)}), _show)


def parse_tasks(texts: Sequence[str], option: str = "--task") -> dict[str, str]:
    """{name: source} of NAME=S texts. Raises UserError naming the text that is none, or the name given twice."""
    sources: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w+-]+", name):
            raise UserError(
                f"{option} {text} is not NAME=S; give a name of letters, digits, _, + and -, an equals sign and a "
                f"source, as in {option} birds=path/to/birds."
            )
        if name in sources:
            raise UserError(f"{option} {name} is given twice ({sources[name]} and {source}); give each its own name.")
        sources[name] = source
    return sources


def check(o: Multitask, sources: Mapping[str, str], vals: Mapping[str, str]) -> None:
    """Raises UserError for what several tasks cannot be trained with."""
    if not 2 <= len(sources) <= MOST:
        count = {0: "No task is", 1: "One task is"}.get(len(sources), f"{len(sources)} tasks are")
        mend = "; for one task there is `iwm finetune`" if len(sources) < 2 else ""
        raise UserError(f"{count} given; give 2 to {MOST}, each as --task NAME=S{mend}.")
    for name in vals:
        if name not in sources:
            raise UserError(f"--val names the task '{name}', which is none; {errors.did_you_mean(name, sources)}")
    if o.schedule.batch_size < len(sources):
        raise UserError(
            f"A batch of {o.schedule.batch_size} cannot be split between {len(sources)} tasks; give a larger "
            "--batch-size."
        )
    if o.queries != "all" or o.action != "null" or o.schedule.mixes:
        raise UserError(
            "Several tasks are asked at all positions, under the null action, of pictures that are not mixed; leave "
            "out queries, action, mixup and cutmix."
        )


def _splits(name: str, source: str, val: str, size: int) -> LabelledSplits:
    try:
        return labelled_splits(source, val, size=size)
    except UserError as error:
        raise UserError(f"Task {name}: {error}") from None


def _prepare(
    model: ImageWorldModel, splits: Mapping[str, LabelledSplits], settings: Classification, size: int, session: Session
) -> list[Task]:
    """All tasks in memory: as the frozen encoder's tokens, or as pictures where one of them does not fit."""
    encoder = model.used_encoder(settings.student)
    pictures, tokens = [], []
    for name, of_task in splits.items():
        console.print(f"{name}: {len(of_task.classes)} classes, {of_task.sentence}.")
        work = ClassificationWork.prepare(of_task, settings, size, session)
        pictures.append(Task(name, of_task, work))
        tokens.append(Task(name, of_task, work.encoded(encoder, encoder.layer) if settings.reuses_tokens else work))
    # A batch holds all tasks, so either all are tokens or all are pictures.
    return tokens if all(task.work.tokens_kept for task in tokens) else pictures


# ---- the comparison ------------------------------------------------------------------------------------------------


def measure(shared: Tuned, tasks: Sequence[Task], settings: Classification) -> dict[str, Any]:
    """What the shared predictor says of every task's test images."""
    rows: dict[str, dict[str, Any]] = {}
    for task, classifier in zip(tasks, shared.classifiers, strict=True):
        rows[task.name] = {
            **_with_errors(scores(task.work.guess(classifier, task.work.test), task.work.labels), task),
            "n_train": len(task.work.samples.labels),
            "n_val": len(task.work.labels),
            **facts_of_source(task.splits),
            "classes": list(task.splits.classes),
        }
    return {
        "tasks": rows,
        **_averages(rows),
        "chosen": shared.choice,
        "tried": shared.tried,
        "at_grid_end": grid_ends(shared.choice, shared.tried),
        "trainable_parameters": shared.trainable,
        "iterations": shared.steps,
        "images_per_iteration": settings.schedule.batch_size // len(tasks) * len(tasks),
    }


def measure_twins(
    model: ImageWorldModel, tasks: Sequence[Task], settings: Classification, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Train every task's twins; returns the numbers that they add, those of every task to its own in `rows`."""
    twins: dict[str, list[Tuned]] = {name: [] for name in TWINS}
    beside: dict[str, dict[str, Any]] = {}
    for task in tasks:
        alone: dict[str, Any] = {}
        for name, equal_updates in TWINS.items():
            twin = Training(model, [task], settings, tasks, equal_updates).run()
            alone |= _numbers_alone(name, task, twin)
            twins[name].append(twin)
        beside[task.name] = {**rows[task.name], **_with_errors(alone, task)}
    return {
        "tasks": beside,
        **_averages(beside),
        "single_task_trainable_parameters": sum(twin.trainable for twin in twins["single_task"]),
        **{f"{name}_iterations": sum(twin.steps for twin in each) for name, each in twins.items()},
    }


def _with_errors(accuracies: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Accuracies on a task's test images with their standard errors."""
    return {**accuracies, **accuracy_errors(accuracies, len(task.work.labels))}


def _averages(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means over the tasks of what all of them have."""
    there = [key for key in (*AVERAGES, "majority_top1") if all(key in row for row in rows.values())]
    return {f"average_{key}": sum(row[key] for row in rows.values()) / len(rows) for key in there}


def _numbers_alone(name: str, task: Task, twin: Tuned) -> dict[str, Any]:
    """What a task's twin says, its name before every key."""
    alone = scores(task.work.guess(twin.classifiers[0], task.work.test), task.work.labels)
    ends = grid_ends(twin.choice, twin.tried)
    numbers = {"top1": alone["top1"], "top5": alone["top5"], "chosen": twin.choice, "tried": twin.tried}
    return {f"{name}_{key}": value for key, value in {**numbers, "at_grid_end": ends}.items()}


def _show(content: Mapping[str, Any]) -> None:
    """Print a column a task, whose names are shorter than those of the numbers, then the totals."""
    more = ("top5", "n_train", "n_val")
    tasks = content["tasks"]
    averages = [*AVERAGES, *["majority_top1"] * any(is_unbalanced(task) for task in tasks.values())]
    rows = [["classes", *(len(task["classes"]) for task in tasks.values()), None]]
    rows += [[key, *(task[key] for task in tasks.values()), content[f"average_{key}"]] for key in averages]
    rows += [[key, *(task[key] for task in tasks.values()), None] for key in more]
    columns = ["what", *tasks, "average"]
    title = f"One {content['predictor']} predictor, {len(content['tasks'])} tasks"
    console.print(table(title, columns, rows))
    cost = ("trainable_parameters", "single_task_trainable_parameters")
    steps = ("iterations", *(f"{name}_iterations" for name in TWINS))
    show("Cost", {name: content[name] for name in (*cost, *steps)})


def draw(tasks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every task's accuracy with the shared predictor above those with a predictor of its own."""
    figure = drawing.blank(6.4, 1.3 + 0.75 * len(tasks))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    places = np.arange(len(tasks))
    kinds = (
        ("top1", "one predictor for all", drawing.BLUE),
        ("single_task_top1", "one each, equal total steps", "#B9BFC4"),
        ("single_task_equal_updates_top1", "one each, equal updates", drawing.GREY),
    )
    for number, (key, label, colour) in enumerate(kinds):
        values = [task[key] for task in tasks.values()]
        bars = axes.barh(places + 0.27 * (number - 1), values, 0.24, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=7.5, color=drawing.INK)
    chances = [task["chance"] for task in tasks.values()]
    axes.vlines(chances, places - 0.42, places + 0.42, color=drawing.ORANGE, linewidth=1.4, label="chance")
    axes.set_yticks(places, [f"{name}\n{len(task['classes'])} classes" for name, task in tasks.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)], fontsize=8)
    axes.set_xlabel("share of test images right", fontsize=8.5, color=drawing.INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, labelcolor=drawing.INK, ncols=2, loc="outside upper left")
    return figure
