"""Many tasks with one predictor: a learned token tells it which one is meant (paper section 5, multitask tuning).

    y_t = head_t(p(f-bar(x), a = 0, token_t)),   loss = mean_t CE(y_t, label)     f-bar frozen, p shared by all t

Every batch of b images is split evenly between the T tasks. The control is one predictor a task (no token), finetuned
from the same start under the same grid of learning rates. Where the shared one takes S steps, a task has two twins:

    equal total steps    S / T steps of b images each: as many steps in total, a T-th of the updates for each twin
    equal updates        S steps of b / T images each: as many updates as the shared predictor, T S steps in total

Every twin is shown the very pictures, in the very order, that the shared predictor is shown of its task.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from iwm.data.sources import LabelledSplits, labelled_splits
from iwm.evaluation import ritual
from iwm.evaluation.grids import grid_ends, untried
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import features, fitting
from iwm.evaluation.tasks.classifier import Classifier, save_tasks
from iwm.evaluation.tasks.finetune import ClassificationWork, build
from iwm.evaluation.tasks.fitting import accuracy, cross_entropy, scores
from iwm.evaluation.tasks.probes import facts_of_source
from iwm.evaluation.tasks.streams import Rows, steps_of, stream
from iwm.evaluation.tasks.tuning import grid_of, trainable_of
from iwm.evaluation.uncertainty import accuracy_errors, is_unbalanced
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import drawing, errors, sharing
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


@dataclass(frozen=True)
class Task:
    """A labelled source under the name a user gave it, in memory."""

    name: str
    splits: LabelledSplits
    work: ClassificationWork


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
        classifiers, numbers = measure(model, tasks, o)
        together = "+".join(sources)
        data = together if len(together.encode()) <= LONGEST else f"{len(sources)}-tasks"
        settings = ritual.settings_of(o, Classification)
        outcome = Outcome(
            data=data,
            payload={
                "data": data,
                "predictor": o.predictor,
                **numbers,
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
            figures={"": lambda: draw(numbers["tasks"])},
            weights=lambda folder: save_tasks(classifiers, list(sources), model, folder, finetuned=settings),
        )
        return work.conclude(outcome, _show)


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


# ---- training ------------------------------------------------------------------------------------------------------


def classifiers_of(model: ImageWorldModel, tasks: Sequence[Task], settings: Classification) -> list[Classifier]:
    """A fresh classifier for every task. Several share encoder and predictor and have a task token each; a single one
    is an ordinary finetuning. Heads are drawn alike in both, the same for the same seed."""
    classifiers = [task.work.build(model, settings) for task in tasks]
    first = classifiers[0]
    assert first.predictor is not None
    if len(classifiers) > 1:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for classifier in classifiers:
                classifier.encoder, classifier.predictor = first.encoder, first.predictor
                token = torch.empty(1, first.predictor.settings.width)
                classifier.token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
    return classifiers


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
    task = None
    if len(classifiers) > 1:
        own: list[Tensor] = [classifier.token for classifier in classifiers if classifier.token is not None]
        task = torch.cat([token.expand(count, *token.shape) for token, count in zip(own, counts, strict=True)])
    null = values.new_zeros(len(values), first.space.dim)
    parts = first.predictor(values, null, grid=first.grid, task=task).split(counts)
    return [classifier.head(part.float()) for classifier, part in zip(classifiers, parts, strict=True)]


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
        return trainable_of(nn.ModuleList(self.classifiers))


@dataclass(frozen=True)
class Training:
    """The training of one predictor for `tasks`: all of `among`, or one of them, a twin.

    In any case every task is shown equally many images.
    """

    model: ImageWorldModel
    tasks: Sequence[Task]
    settings: Classification
    among: Sequence[Task]
    equal_updates: bool = False
    """Of a twin: as many steps as the shared predictor takes, with its share of the batch; else its share of the steps,
    with the whole batch."""

    @property
    def title(self) -> str:
        if len(self.tasks) > 1:
            return f"all {len(self.tasks)} tasks"
        return f"{self.tasks[0].name} alone" + (", equal updates" if self.equal_updates else "")

    def run(self) -> Tuned:
        """Choose learning rates on a tenth of every task and train."""
        schedule = self.settings.schedule
        split = {task.name: fitting.search_rows(task.work.samples, schedule, self.settings.seed) for task in self.among}
        rests, tenths = ({name: rows[side] for name, rows in split.items()} for side in (0, 1))

        def trial(choice: dict[str, Any], title: str) -> float:
            classifiers, _ = self._fit(choice, schedule.search, rests, title)
            right = []
            for task, classifier in zip(self.tasks, classifiers, strict=True):
                if len(tenth := tenths[task.name]):
                    guesses = task.work.guess(classifier, task.work.samples.plain(tenth))
                    right.append(accuracy(guesses, task.work.samples.labels[tenth]))
            return sum(right) / len(right)

        def train(choice: dict[str, Any]) -> tuple[list[Classifier], int]:
            everything = {task.name: torch.arange(len(task.work.samples.labels)) for task in self.among}
            return self._fit(choice, schedule.epochs, everything, self.title)

        grid, judged = grid_of(self.settings), any(len(tenths[task.name]) for task in self.tasks)
        grid = grid if judged else [untried(grid)]
        (classifiers, steps), choice, tried = fitting.search_and_train(grid, trial, train, schedule, self.title)
        return Tuned(classifiers, choice, tried, steps)

    def _fit(
        self, choice: dict[str, Any], epochs: int, rows: Mapping[str, Rows], title: str
    ) -> tuple[list[Classifier], int]:
        """Fresh classifiers trained on these rows of every task, and in how many steps."""
        tasks, among, schedule, seed = self.tasks, self.among, self.settings.schedule, self.settings.seed
        session, tokens_given = tasks[0].work.session, tasks[0].work.tokens_kept
        each = schedule.batch_size // len(among)
        among_whom = len(tasks) if self.equal_updates else len(among)
        batch = each * among_whom // len(tasks)
        classifiers = classifiers_of(self.model, tasks, self.settings)
        for classifier in classifiers:
            choose_attention(classifier.to(session.device), session.device, session.precision)
        steps = steps_of([len(rows[task.name]) for task in among], epochs, each) * len(tasks) // among_whom

        each_mine = sharing.rows_of_batch(batch)
        mine = np.concatenate([number * batch + each_mine for number in range(len(tasks))])

        def loss_of(step: int) -> Tensor:
            pairs = [stream(task.work.samples, rows[task.name], seed, batch, step) for task in tasks]
            inputs = [session.upload(values) for values, _ in pairs]
            with session.autocast(), sharing.part_of_batch(len(tasks) * batch, mine):
                logits = logits_together(classifiers, inputs, tokens_given)
            losses = [
                cross_entropy(guess.float(), session.upload(truth), schedule.smoothing)
                for guess, (_, truth) in zip(logits, pairs, strict=True)
            ]
            return torch.stack(losses).mean()

        modules = nn.ModuleList(classifiers).train()
        groups = _groups(classifiers, schedule.weight_decay, **choice)
        how: dict[str, Any] = {"seed": seed, "checked_every": max(1, steps // 20), "session": session, "title": title}
        fitting.descend(groups, range(steps), loss_of, steps, schedule, **how)
        modules.eval()
        return classifiers, steps


def _groups(classifiers: Sequence[Classifier], decay: float, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups: heads and task tokens at `lr`, the predictor at `ratio` of it."""
    first = classifiers[0]
    assert first.predictor is not None
    groups = fitting.decay_groups(nn.ModuleList([classifier.head for classifier in classifiers]), lr, decay)
    tokens = [classifier.token for classifier in classifiers if classifier.token is not None]
    if tokens:
        groups.append({"params": tokens, "lr": lr, "weight_decay": 0.0})
    return groups + fitting.decay_groups(first.predictor, lr * ratio, decay)


# ---- the comparison ------------------------------------------------------------------------------------------------


def measure(
    model: ImageWorldModel, tasks: Sequence[Task], settings: Classification
) -> tuple[list[Classifier], dict[str, Any]]:
    """Train the shared predictor and every task's twins; returns the shared classifiers and the numbers of all."""
    shared = Training(model, tasks, settings, tasks).run()
    rows: dict[str, dict[str, Any]] = {}
    twins: dict[str, list[Tuned]] = {name: [] for name in TWINS}
    for task, classifier in zip(tasks, shared.classifiers, strict=True):
        alone: dict[str, Any] = {}
        for name, equal_updates in TWINS.items():
            twin = Training(model, [task], settings, tasks, equal_updates).run()
            alone |= _numbers_alone(name, task, twin)
            twins[name].append(twin)
        accuracies = scores(task.work.guess(classifier, task.work.test), task.work.labels) | alone
        rows[task.name] = {
            **accuracies,
            **accuracy_errors(accuracies, len(task.work.labels)),
            "n_train": len(task.work.samples.labels),
            "n_val": len(task.work.labels),
            **facts_of_source(task.splits),
            "classes": list(task.splits.classes),
        }
    numbers = {
        "tasks": rows,
        **{f"average_{k}": sum(row[k] for row in rows.values()) / len(rows) for k in (*AVERAGES, "majority_top1")},
        "chosen": shared.choice,
        "tried": shared.tried,
        "at_grid_end": grid_ends(shared.choice, shared.tried),
        "trainable_parameters": shared.trainable,
        "single_task_trainable_parameters": sum(twin.trainable for twin in twins["single_task"]),
        "iterations": shared.steps,
        **{f"{name}_iterations": sum(twin.steps for twin in each) for name, each in twins.items()},
        "images_per_iteration": settings.schedule.batch_size // len(tasks) * len(tasks),
    }
    return shared.classifiers, numbers


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
