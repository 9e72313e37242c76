"""One predictor trained for several tasks: a learned token tells it which one is meant (paper section 5, multitask
tuning).

    y_t = head_t(p(f-bar(x), a = 0, token_t)),   loss = mean_t CE(y_t, label)     f-bar frozen, p shared by all t

Every batch of b images is split evenly between the T tasks. A predictor of a single task, a twin, has no token and is
shown the very pictures, in the very order, that the shared one is shown of this task (`iwm.evaluation.tasks.multitask`
compares them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from iwm.data.sources import LabelledSplits
from iwm.evaluation.grids import untried
from iwm.evaluation.tasks import fitting
from iwm.evaluation.tasks.classifier import Classifier
from iwm.evaluation.tasks.finetune import ClassificationWork
from iwm.evaluation.tasks.fitting import accuracy, cross_entropy
from iwm.evaluation.tasks.streams import Rows, steps_of, stream
from iwm.evaluation.tasks.tuning import grid_of, trainable_of
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import sharing
from iwm.verbs.shared import Classification


@dataclass(frozen=True)
class Task:
    """A labelled source under the name a user gave it, in memory."""

    name: str
    splits: LabelledSplits
    work: ClassificationWork


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
