"""Fitting a classifier, of images or of pixels: the one training loop of probes, finetuning and segmentation, and the
scores of classification.

    AdamW, linear warm-up, cosine to 0, cross-entropy;   choice = argmax over a grid of the score on a seeded tenth

A learning rate is chosen in `choose` on a seeded tenth of the training images; the test images come into this file
only as an argument of `logits_of`, after everything has been chosen.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from timm.data.mixup import Mixup
from torch import Tensor, nn

from iwm.data.crops import IGNORED
from iwm.data.splits import tenth_of_each_class
from iwm.evaluation.grids import grid_ends, untried
from iwm.runtime import distributed, sharing
from iwm.runtime.algebra import cosine
from iwm.runtime.console import progress
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation, seeded, uniforms
from iwm.verbs.shared import Schedule

T = TypeVar("T")

# ---- scores --------------------------------------------------------------------------------------------------------


def accuracy(logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    """Fraction of images whose highest logit is the label's."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def scores(logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> dict[str, Any]:
    """top1, top5, balanced_top1 (mean recall over the classes that occur) and confusion [truth, prediction].

    With fewer than five classes top5 is top-c, that is 1; "top5_is" says so.
    """
    classes = logits.shape[1]
    among = min(5, classes)
    best = logits.topk(among, dim=1).indices
    confusion = torch.bincount(labels * classes + best[:, 0], minlength=classes**2).view(classes, classes)
    counts = confusion.sum(dim=1)
    recall = confusion.diagonal()[counts > 0] / counts[counts > 0]
    return {
        "top1": accuracy(logits, labels),
        "top5": float((best == labels[:, None]).any(dim=1).double().mean()),
        "top5_is": f"top-{among}",
        "balanced_top1": float(recall.double().mean()),
        "confusion": confusion.tolist(),
    }


# ---- training ------------------------------------------------------------------------------------------------------


class TrainingSet:
    """What `fit` and `choose` learn from: indexed examples whose inputs may differ from epoch to epoch."""

    metric: str
    """Name of the score that choices go by."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The examples' inputs of this epoch and their classes: one an image, or one a pixel of these inputs with
        IGNORED where there is none."""
        raise NotImplementedError

    def hold_out(self, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
        """Indices of the rest and of a seeded tenth."""
        raise NotImplementedError

    def score(self, learner: "Learner", rows: Int64[Tensor, " t"], session: Session) -> float:
        """How well a trained learner does on these examples, the more the better."""
        raise NotImplementedError


@dataclass(frozen=True)
class Samples(TrainingSet):
    """Training inputs in memory, `values[view, image]`: float16 tokens [v, n, t, d] or uint8 pixels [v, n, 3, s, s].

    View 0 is the plain image; each further one a crop drawn once. Every epoch each image shows one view at random, or
    what `fresh` (rows, epoch) makes of it.
    """

    values: Tensor
    labels: Int64[Tensor, " n"]
    fresh: Callable[[Int64[np.ndarray, " b"], int], Tensor] | None = None
    metric = "top1"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Int64[np.ndarray, " b"], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(rows)
        if self.fresh:
            return self.fresh(rows, epoch), self.labels[images]
        views = (uniforms(seed, "classifier view", epoch, rows, 1)[:, 0] * len(self.values)).astype(np.int64)
        return self.values[torch.from_numpy(views), images], self.labels[images]

    def plain(self, rows: Int64[Tensor, " b"]) -> Tensor:
        return self.values[0, rows]

    def hold_out(self, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
        return tenth_of_each_class(self.labels, seed)

    def score(self, learner: "Learner", rows: Int64[Tensor, " t"], session: Session) -> float:
        logits = logits_of(learner.logits, self.plain(rows), session)
        return accuracy(logits, self.labels[rows])


@dataclass(frozen=True)
class Learner:
    """A fresh model to be trained: `logits` maps a batch of inputs to [b, c] (or [b, c, h, w]); each group carries its
    peak "lr"."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """A finished learner with what was tried on the way."""

    learner: Learner
    choice: dict[str, Any]
    tried: list[dict[str, Any]]
    images_per_second: float

    @property
    def at_grid_end(self) -> dict[str, str]:
        return grid_ends(self.choice, self.tried)


def decay_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups at one learning rate: no weight decay on biases, norms, queries and mask tokens."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in trainable if p.squeeze().ndim > 1]
    vectors = [p for p in trainable if p.squeeze().ndim <= 1]
    pairs = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "lr": lr, "weight_decay": decay} for params, decay in pairs if params]


def fit(
    learner: Learner,
    samples: TrainingSet,
    rows: Int64[Tensor, " m"],
    schedule: Schedule,
    epochs: int,
    *,
    seed: int,
    session: Session,
    title: str,
) -> float:
    """Train on `rows` of the samples, deterministically by seed; returns images a second.

    Several ranks share every batch. Raises FloatingPointError when the loss is no longer finite.
    """
    size = min(schedule.batch_size, len(rows))
    mine = sharing.rows_of_batch(size, mirrored=schedule.mixes)
    per_epoch = max(1, len(rows) // size)

    def batches() -> Iterable[tuple[int, int, np.ndarray]]:
        for epoch in range(epochs):
            order = rows[torch.from_numpy(permutation(seed, "classifier order", epoch, len(rows)))].numpy()
            for number, batch in enumerate(order[: per_epoch * size].reshape(per_epoch, size)):
                yield epoch, epoch * per_epoch + number, batch[mine]

    def loss_of(stretch: tuple[int, int, np.ndarray]) -> Tensor:
        epoch, step, batch = stretch
        inputs, labels = (session.upload(each) for each in samples.batch(batch, seed, epoch))
        share = 1.0
        if schedule.mixes:
            inputs, share = mixed(inputs, schedule, seed, step)
        with session.autocast(), sharing.part_of_batch(size, mine):
            logits = learner.logits(inputs).float()
        loss = cross_entropy(logits, labels, schedule.smoothing)
        if share < 1:  # cross-entropy is linear in the target: this is that of the mixed label
            loss = share * loss + (1 - share) * cross_entropy(logits, labels.flip(0), schedule.smoothing)
        return loss

    learner.model.train()
    steps = epochs * per_epoch
    how: dict[str, Any] = {"seed": seed, "checked_every": per_epoch, "session": session, "title": title}
    seconds = descend(learner.groups, batches(), loss_of, steps, schedule, **how)
    learner.model.eval()
    return steps * size / seconds


def descend(
    groups: list[dict[str, Any]],
    batches: Iterable[T],
    loss_of: Callable[[T], Tensor],
    steps: int,
    schedule: Schedule,
    *,
    seed: int,
    checked_every: int,
    session: Session,
    title: str,
) -> float:
    """One AdamW step a batch, each group's "lr" being its peak; returns the seconds it took.

    Of several ranks each computes its rows of the batch, whose losses add up to the batch's, and gradients are summed.
    Raises FloatingPointError when the loss, looked at every `checked_every` steps, is no longer finite.
    """
    optimiser = torch.optim.AdamW(groups, fused=True)
    peaks = [group["lr"] for group in optimiser.param_groups]
    trainable = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    average = WeightAverage(trainable, schedule.ema)
    total, summed = torch.zeros((), device=session.device), 0
    since = time.perf_counter()
    generators = torch.random.fork_rng(devices=[session.device] if session.device.type == "cuda" else [])
    with generators, progress("steps") as bar:
        torch.manual_seed(seed)  # drop path draws from the global generator
        task = bar.add_task(title, total=steps, note="")
        for step, batch in enumerate(batches):
            factor = factor_at(step, steps, schedule.warmup)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            distributed.tick()
            sharing.sum_gradients(trainable)
            if schedule.clip:
                torch.nn.utils.clip_grad_norm_(trainable, schedule.clip, foreach=True)
            optimiser.step()
            average.update(step)
            total += loss.detach()
            summed += 1
            bar.advance(task)
            if summed == checked_every or step == steps - 1:
                mean = float(distributed.all_reduce_sum(total)) / summed  # the only synchronisation
                if not math.isfinite(mean):
                    raise FloatingPointError("the loss is not finite")
                bar.update(task, note=f"loss {mean:.3f}")
                total, summed = torch.zeros((), device=session.device), 0
    distributed.rest()
    average.take()
    return time.perf_counter() - since


class WeightAverage:
    """A moving average of weights over the steps of a training; without a decay there is none."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters] if decay else []

    def update(self, step: int) -> None:
        """Take in the weights after a step, from 0."""
        if self.values:
            # A short memory first, or a short training would end at its start (as in TensorFlow).
            weight = 1 - min(self.decay, (step + 1) / (step + 10))
            now = [parameter.detach() for parameter in self.parameters]
            torch._foreach_lerp_(self.values, now, weight)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def take(self) -> None:
        """Put the average in the place of the weights."""
        for parameter, mean in zip(self.parameters if self.values else (), self.values, strict=True):
            parameter.copy_(mean)


def cross_entropy(logits: Float[Tensor, "b c *s"], labels: Int64[Tensor, "b *s"], smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labels that are not IGNORED; 0 where all of them are. Of several ranks what this
    one's labels add to the mean over all ranks' labels."""
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
    return total / distributed.all_reduce_sum((labels != IGNORED).sum()).clamp_min(1)


def mixed(
    images: UInt8[Tensor, "b 3 h w"], schedule: Schedule, seed: int, step: int
) -> tuple[Float[Tensor, "b 3 h w"], float]:
    """A batch mixed with itself in reverse order by timm's mixup or cutmix, in [0, 1], and the share of the first.

    A pure function of seed and step; the label of image i is the share of y_i and the rest of y_(b-1-i).
    """
    mixup = Mixup(schedule.mixup, schedule.cutmix)
    values = images.float() / 255
    with seeded(seed, "mixup", step, 0):
        share = mixup._mix_batch(values)
    return values, float(share)


def factor_at(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a fraction of its peak: linear warm-up over a share of the steps, then cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return cosine(1.0, 0.0, math.pi * (step - rise) / max(1.0, steps - rise))


@torch.no_grad()
def logits_of(
    logits: Callable[[Tensor], Tensor], inputs: Tensor, session: Session, batch: int = 256
) -> Float[Tensor, "n c"]:
    """Logits of all inputs in float32 on the CPU. All ranks have the inputs, each answers for its share."""

    def answer(inputs: Tensor) -> Tensor:
        done = []
        for part in inputs.split(batch):
            distributed.advance()
            with session.autocast():
                done.append(logits(part.to(session.device)).float().cpu())
        return torch.cat(done)

    return sharing.by_rows(answer, inputs)


def choose(
    make: Callable[[dict[str, Any]], Learner],
    grid: Sequence[dict[str, Any]],
    samples: TrainingSet,
    schedule: Schedule,
    *,
    seed: int,
    session: Session,
    title: str,
    begin: Callable[[dict[str, Any]], Learner] | None = None,
) -> Trained:
    """Try every choice of the grid on nine tenths for `schedule.search` epochs, take the one that does best on the
    seeded tenth, train it anew on all images for `schedule.epochs`.

    `make` builds a fresh learner, the same one for the same choice; `begin` those of the trials, where `make` starts
    from weights that have seen the tenth. Raises UserError when the chosen training diverges.
    """
    rest, tenth = search_rows(samples, schedule, seed)
    grid = grid if len(tenth) else [untried(grid)]
    where: dict[str, Any] = {"seed": seed, "session": session}

    def trial(choice: dict[str, Any], caption: str) -> float:
        learner = (begin or make)(choice)
        fit(learner, samples, rest, schedule, schedule.search, title=caption, **where)
        return samples.score(learner, tenth, session)

    def train(choice: dict[str, Any]) -> tuple[Learner, float]:
        learner = make(choice)
        everything = torch.arange(len(samples))
        return learner, fit(learner, samples, everything, schedule, schedule.epochs, title=title, **where)

    (learner, rate), choice, tried = search_and_train(grid, trial, train, schedule, title, samples.metric)
    return Trained(learner, choice, tried, rate)


def search_rows(samples: TrainingSet, schedule: Schedule, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
    """What the trials of a search train on (nine tenths, or `search_images` of them) and the tenth that judges them."""
    rest, tenth = samples.hold_out(seed)
    if schedule.search_images:
        rest = rest[torch.from_numpy(permutation(seed, "search images", 0, len(rest)))[: schedule.search_images]]
    return rest, tenth


def search_and_train(
    grid: Sequence[dict[str, Any]],
    trial: Callable[[dict[str, Any], str], float],
    train: Callable[[dict[str, Any]], T],
    schedule: Schedule,
    title: str,
    metric: str = "top1",
) -> tuple[T, dict[str, Any], list[dict[str, Any]]]:
    """Train with the choice of the grid whose trial (choice, title -> `metric` on the tenth) was best; returns what
    `train` does, the choice, and everything tried. A grid of one is not tried.

    Either may raise FloatingPointError: such a trial counts 0. Raises UserError when the chosen training diverges.
    """
    tried = []
    for number, choice in enumerate(grid if len(grid) > 1 else (), start=1):
        row = {**choice, "epochs": schedule.search}
        try:
            tried.append({**row, f"tenth_{metric}": trial(dict(choice), f"{title}, choosing {number}/{len(grid)}")})
        except FloatingPointError:
            tried.append({**row, f"tenth_{metric}": 0.0, "diverged": True})
    # The first of equals, so a grid in rising order takes the gentler learning rate.
    best = max(range(len(tried)), key=lambda number: tried[number][f"tenth_{metric}"]) if tried else 0
    choice = dict(grid[best])
    try:
        return train(choice), choice, tried
    except FloatingPointError:
        raise UserError(f"Training ({title}) diverged with {choice}; give lower learning rates.") from None
