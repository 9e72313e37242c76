"""Many tasks with one predictor: a learned token tells it which one is meant (paper section 5, multitask tuning).

    y_t = head_t(p(f-bar(x), a = 0, token_t)),   loss = mean_t CE(y_t, label)     f-bar frozen, p shared by all t

Every batch is split evenly between the T tasks. The control is one predictor a task (no token), finetuned from the
same start under the same grid of learning rates, S / T steps each where the shared one takes S: the same number of
steps in total, and every task's twin is shown the very pictures, in the very order, that the shared one is shown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from iwm import config, run_folder
from iwm.config import Speed
from iwm.data.sources import LabelledSplits, labelled_splits, source_identity
from iwm.evaluation import ritual
from iwm.evaluation.tasks import finetune
from iwm.evaluation.tasks.classifier import Classifier, save_tasks
from iwm.evaluation.tasks.finetune import FinetuneSettings, Work
from iwm.evaluation.tasks.fitting import (
    Samples,
    accuracy,
    cross_entropy,
    decay_groups,
    descend,
    scores,
    search_and_train,
    search_rows,
)
from iwm.evaluation.tasks.tuning import grid_of
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, show, table
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

MOST = 8
"""Tasks of one predictor."""
LONGEST = 100
"""Bytes of the tasks' names in a file's name; beyond, their number stands there."""
Rows = Int64[Tensor, " n"]


@dataclass(frozen=True)
class Task:
    """A labelled source under the name a user gave it, in memory."""

    name: str
    splits: LabelledSplits
    work: Work


def parse_tasks(texts: Sequence[str], option: str = "--task") -> dict[str, str]:
    """{name: source} of NAME=S texts. Raises UserError naming the text that is none, or the name given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not source or not re.fullmatch(r"[\w+-]+", name):
            raise UserError(
                f"{option} {text} is not NAME=S; give a name of letters, digits, _, + and -, an equals sign and a "
                f"source, as in {option} birds=path/to/birds."
            )
        if name in found:
            raise UserError(f"{option} {name} is given twice ({found[name]} and {source}); give each its own name.")
        found[name] = source
    return found


def multitask(
    run: str,
    tasks: Mapping[str, str],
    *,
    vals: Mapping[str, str] | None = None,
    predictor: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    size: int = 0,
    speed: Speed | None = None,
    out: str = "",
) -> dict[str, Any]:
    """Finetune one predictor of a RUN on 2 to 8 labelled sources {name: source}, and its single-task twins; write
    `RUN/eval/multitask-PREDICTOR-NAMES.json` with the weights in the folder of that name, print it, and return what
    was written, with the file under "path".

    `vals` are sources of the images reported on, by task, where a source does not bring its own. `predictor` and
    `seed` go before those of `settings`. Raises UserError for bad input.
    """
    vals = dict(vals or {})
    _check(run, tasks, vals)
    settings = replace(settings or FinetuneSettings(), train="predictor", predictor=predictor, seed=seed)
    if settings.schedule.batch_size < len(tasks):
        raise UserError(
            f"A batch of {settings.schedule.batch_size} cannot be split between {len(tasks)} tasks; give a larger "
            "--batch-size."
        )
    if settings.queries != "all" or settings.action != "null" or settings.schedule.mixes:
        raise UserError(
            "Several tasks are asked at all positions, under the null action, of pictures that are not mixed; leave "
            "out queries, action, mixup and cutmix."
        )
    speed = speed or Speed()
    model = run_folder.load_model(run)
    size = size or model.settings.data.image_size
    splits = {name: _splits(name, source, vals.get(name, ""), size) for name, source in tasks.items()}
    encoder = model.encoder if settings.student else model.target_encoder
    with devices.threads(speed):
        seen, ready = [], []
        for name, of_task in splits.items():
            console.print(f"{name}: {len(of_task.classes)} classes, {of_task.sentence}.")
            seen.append(Task(name, of_task, Work.prepare(of_task, settings, size, speed)))
            work = seen[-1].work
            ready.append(replace(seen[-1], work=work.encoded(encoder) if settings.reuses_tokens else work))
        # A batch holds all tasks, so either all are tokens or all are pictures.
        ready = ready if all(task.work.tokens_kept for task in ready) else seen
        shared, found = measure(model, ready, settings, size)
    names = [task.name for task in ready]
    together = "+".join(names)
    data = together if len(together.encode()) <= LONGEST else f"{len(names)}-tasks"
    payload = {
        "run": run,
        "data": data,
        "predictor": predictor,
        **found,
        "encoder": "student encoder" if settings.student else "EMA encoder",
        "image_size": size,
        "precision": ready[0].work.precision,
        "tokens_kept": ready[0].work.tokens_kept,
    }
    written = {
        **vars(settings),
        "schedule": vars(settings.schedule),
        "tasks": {name: source_identity(source) for name, source in tasks.items()},
        "vals": {name: source_identity(source) for name, source in vals.items()},
        "run": ritual.run_identity(run, out),
        "size": size,
    }
    words = [predictor, "student" * settings.student, f"seed{seed}" if seed else ""]
    variant = "-".join(word for word in words if word)
    path = ritual.place(run, "multitask", data, written, variant=variant, out=out)
    folder = path.with_suffix("")
    save_tasks(shared, names, model, folder, finetuned=config.to_dict(settings))
    draw(found["tasks"], path.with_suffix(".png"))
    content = ritual.write(path, {**payload, "weights": str(folder)}, written)
    _show(content, path)
    return {**content, "path": str(path)}


def _check(run: str, tasks: Mapping[str, str], vals: Mapping[str, str]) -> None:
    if run.startswith("timm:"):
        raise UserError(f"{run} has no predictor to finetune; give a RUN, or probe it with `iwm probe`.")
    if not 2 <= len(tasks) <= MOST:
        count = {0: "No task is", 1: "One task is"}.get(len(tasks), f"{len(tasks)} tasks are")
        mend = "; for one task there is `iwm finetune`" if len(tasks) < 2 else ""
        raise UserError(f"{count} given; give 2 to {MOST}, each as --task NAME=S{mend}.")
    for name in vals:
        if name not in tasks:
            raise UserError(f"--val names the task '{name}', which is none; {config.did_you_mean(name, tasks)}")


def _splits(name: str, source: str, val: str, size: int) -> LabelledSplits:
    try:
        return labelled_splits(source, val, size=size)
    except UserError as error:
        raise UserError(f"Task {name}: {error}") from None


# ---- training ------------------------------------------------------------------------------------------------------


def build(model: ImageWorldModel, tasks: Sequence[Task], settings: FinetuneSettings, size: int) -> list[Classifier]:
    """A fresh classifier for every task. Several share encoder and predictor and have a task token each; a single one
    is an ordinary finetuning. Heads are drawn alike in both, the same for the same seed."""
    made = []
    for task in tasks:
        classifier = finetune.build(model, settings, len(task.splits.classes), size)
        classifier.names = task.splits.classes
        made.append(classifier)
    first = made[0]
    assert first.predictor is not None
    if len(made) > 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for classifier in made:
                classifier.encoder, classifier.predictor = first.encoder, first.predictor
                token = torch.empty(1, first.predictor.settings.width)
                classifier.token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
    return made


def logits_together(
    classifiers: Sequence[Classifier], inputs: Sequence[Tensor], tokens_given: bool
) -> list[Float[Tensor, "_b _c"]]:
    """Every task's logits of its own inputs, by one pass through what they share."""
    first = classifiers[0]
    assert first.predictor is not None
    if tokens_given:
        values = torch.cat([part.float() for part in inputs])  # autocast cannot join half-precision tensors on a CPU
    else:
        values = first.encoder.tokens(torch.cat(list(inputs)))
    counts = [len(part) for part in inputs]
    told = None
    if len(classifiers) > 1:
        own: list[Tensor] = [classifier.token for classifier in classifiers if classifier.token is not None]
        told = torch.cat([token.expand(count, *token.shape) for token, count in zip(own, counts, strict=True)])
    null = values.new_zeros(len(values), first.space.dim)
    found = first.predictor(values, null, grid=first.grid, task=told)
    return [classifier.head(part.float()) for classifier, part in zip(classifiers, found.split(counts), strict=True)]


def stream(samples: Samples, rows: Rows, seed: int, batch: int, step: int) -> tuple[Tensor, Int64[Tensor, " {batch}"]]:
    """Inputs and labels of one step: the `step`-th stretch of `batch` images of the endless row of shuffled epochs.

    Two readers that differ in `batch` see the same images in the same order.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, within = places // len(rows), places % len(rows)
    inputs, labels = [], []
    for epoch in np.unique(epochs):
        drawn = rows.numpy()[_order(seed, int(epoch), len(rows))[within[epochs == epoch]]]
        inputs.append(samples.batch(drawn, seed, int(epoch)))
        labels.append(samples.labels[torch.from_numpy(drawn)])
    return torch.cat(inputs), torch.cat(labels)


@lru_cache(maxsize=2 * MOST)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """An epoch's order, drawn once for all its steps."""
    return permutation(seed, "classifier order", epoch, count)


def steps_of(counts: Sequence[int], epochs: int, batch: int) -> int:
    """Steps in which `epochs` times all images are shown, `batch` of each task at once; a multiple of the number of
    tasks, so that it can be divided between the twins."""
    tasks = len(counts)
    return tasks * max(1, round(epochs * sum(counts) / (batch * tasks) / tasks))


@dataclass(frozen=True)
class Tuned:
    """Trained classifiers with how they came about."""

    classifiers: list[Classifier]
    choice: dict[str, Any]
    tried: list[dict[str, Any]]
    steps: int

    @property
    def trainable(self) -> int:
        """Parameters that were trained, shared ones counted once."""
        return sum(p.numel() for p in nn.ModuleList(self.classifiers).parameters() if p.requires_grad)


def tune(
    model: ImageWorldModel, tasks: Sequence[Task], settings: FinetuneSettings, size: int, among: Sequence[Task]
) -> Tuned:
    """Choose learning rates and train one predictor for `tasks`: all of `among`, or one of them for its share of the
    steps. Both ways every task is shown equally many images, and a step as many in total."""
    schedule, work = settings.schedule, tasks[0].work
    each = schedule.batch_size // len(among)
    batch = each * len(among) // len(tasks)
    split = {task.name: search_rows(task.work.train, schedule, settings.seed) for task in among}
    title = f"all {len(tasks)} tasks" if len(tasks) > 1 else f"{tasks[0].name} alone"

    def fit(choice: dict[str, Any], epochs: int, rows: Mapping[str, Rows], named: str) -> tuple[list[Classifier], int]:
        made = build(model, tasks, settings, size)
        for classifier in made:
            choose_attention(classifier.to(work.device), work.device, work.precision)
        steps = steps_of([len(rows[task.name]) for task in among], epochs, each) * len(tasks) // len(among)

        def loss_of(step: int) -> Tensor:
            drawn = [stream(task.work.train, rows[task.name], settings.seed, batch, step) for task in tasks]
            inputs = [devices.upload(values, work.device) for values, _ in drawn]
            with devices.autocast(work.device, work.precision):
                logits = logits_together(made, inputs, work.tokens_kept)
            losses = [
                cross_entropy(guess.float(), devices.upload(truth, work.device), schedule.smoothing)
                for guess, (_, truth) in zip(logits, drawn, strict=True)
            ]
            return torch.stack(losses).mean()

        modules = nn.ModuleList(made).train()
        groups = _groups(made, schedule.weight_decay, **choice)
        how: dict[str, Any] = {"seed": settings.seed, "checked_every": max(1, steps // 20), "device": work.device}
        descend(groups, range(steps), loss_of, steps, schedule, title=named, **how)
        modules.eval()
        return made, steps

    def trial(choice: dict[str, Any], named: str) -> float:
        made, _ = fit(choice, schedule.search, {name: rest for name, (rest, _) in split.items()}, named)
        right = []
        for task, classifier in zip(tasks, made, strict=True):
            _, tenth = split[task.name]
            guesses = task.work.guess(classifier, task.work.train.plain(tenth))
            right.append(accuracy(guesses, task.work.train.labels[tenth]))
        return sum(right) / len(right)

    def train(choice: dict[str, Any]) -> tuple[list[Classifier], int]:
        everything = {task.name: torch.arange(len(task.work.train.labels)) for task in among}
        return fit(choice, schedule.epochs, everything, title)

    (made, steps), choice, tried = search_and_train(grid_of(settings), trial, train, schedule, title)
    return Tuned(made, choice, tried, steps)


def _groups(classifiers: Sequence[Classifier], decay: float, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups: heads and task tokens at `lr`, the predictor at `ratio` of it."""
    first = classifiers[0]
    assert first.predictor is not None
    groups = decay_groups(nn.ModuleList([classifier.head for classifier in classifiers]), lr, decay)
    tokens = [classifier.token for classifier in classifiers if classifier.token is not None]
    if tokens:
        groups.append({"params": tokens, "lr": lr, "weight_decay": 0.0})
    return groups + decay_groups(first.predictor, lr * ratio, decay)


# ---- the comparison ------------------------------------------------------------------------------------------------


def measure(
    model: ImageWorldModel, tasks: Sequence[Task], settings: FinetuneSettings, size: int
) -> tuple[list[Classifier], dict[str, Any]]:
    """Train the shared predictor and every task's twin; returns the shared classifiers and what is told of all."""
    shared = tune(model, tasks, settings, size, tasks)
    told: dict[str, dict[str, Any]] = {}
    twins = []
    for task, classifier in zip(tasks, shared.classifiers, strict=True):
        twin = tune(model, [task], settings, size, tasks)
        alone = scores(task.work.guess(twin.classifiers[0], task.work.test), task.work.labels)
        ours = scores(task.work.guess(classifier, task.work.test), task.work.labels)
        told[task.name] = {
            **ours,
            "single_task_top1": alone["top1"],
            "single_task_top5": alone["top5"],
            "chance": 1 / len(task.splits.classes),
            "single_task_chosen": twin.choice,
            "single_task_tried": twin.tried,
            "n_train": len(task.work.train.labels),
            "n_val": len(task.work.labels),
            "data": task.splits.train.name,
            "split": task.splits.sentence,
            "classes": list(task.splits.classes),
        }
        twins.append((twin.trainable, twin.steps))
    batch = settings.schedule.batch_size // len(tasks) * len(tasks)
    found = {
        "tasks": told,
        **{f"average_{key}": _average(told, key) for key in ("top1", "single_task_top1", "chance")},
        "chosen": shared.choice,
        "tried": shared.tried,
        "trainable_parameters": shared.trainable,
        "single_task_trainable_parameters": sum(parameters for parameters, _ in twins),
        "iterations": shared.steps,
        "single_task_iterations": sum(steps for _, steps in twins),
        "images_per_iteration": batch,
    }
    return shared.classifiers, found


def _average(told: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return sum(task[key] for task in told.values()) / len(told)


def _show(content: Mapping[str, Any], path: Path) -> None:
    """Print a row a task, then the totals."""
    rows = [
        [name, len(t["classes"]), t["top1"], t["single_task_top1"], t["chance"], t["top5"], t["n_train"], t["n_val"]]
        for name, t in content["tasks"].items()
    ]
    averages = [content[f"average_{key}"] for key in ("top1", "single_task_top1", "chance")]
    rows.append(["average", None, *averages, None, None, None])
    columns = ["task", "classes", "top1", "single_task_top1", "chance", "top5", "n_train", "n_val"]
    title = f"One {content['predictor']} predictor, {len(content['tasks'])} tasks"
    console.print(table(title, columns, rows))
    told = ("trainable_parameters", "single_task_trainable_parameters", "iterations", "single_task_iterations")
    show("Cost", {name: content[name] for name in told}, path)


def draw(tasks: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write, as PNG, every task's accuracy with the shared predictor above that with a predictor of its own."""
    figure = Figure(figsize=(5.6, 1.1 + 0.62 * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(tasks))
    kinds = (("top1", "one predictor for all", drawing.BLUE), ("single_task_top1", "one predictor each", "#B9BFC4"))
    for number, (key, label, colour) in enumerate(kinds):
        values = [task[key] for task in tasks.values()]
        bars = axes.barh(places + 0.37 * (number - 0.5), values, 0.34, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8, color=drawing.INK)
    chances = [task["chance"] for task in tasks.values()]
    axes.vlines(chances, places - 0.42, places + 0.42, color=drawing.ORANGE, linewidth=1.4, label="chance")
    axes.set_yticks(places, [f"{name}\n{len(task['classes'])} classes" for name, task in tasks.items()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)], fontsize=8)
    axes.set_xlabel("share of test images right", fontsize=8.5, color=drawing.INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, labelcolor=drawing.INK, ncols=3, loc="outside upper left")
    drawing.save(figure, path)
