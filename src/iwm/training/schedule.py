"""Learning rate, weight decay and EMA as pure functions of the step.

Schedules run to `stretch` times the training length, so training stops before they end (I-JEPA's ipe_scale). The
learning rate of `optim.schedule` constant ends with the training: warm-up, stable, decay (Hägele et al. 2024).
"""

import math
from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iwm.config import Optim
from iwm.runtime import distributed
from iwm.runtime.algebra import cosine


@dataclass(frozen=True)
class Schedule:
    """The values of one optimiser step.

    At the last step of 300 epochs with the paper's settings: lr 1.195e-4, weight decay 0.366, EMA 0.9992.
    """

    settings: Optim
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Length of training, steps."""
        return self.settings.steps or self.settings.epochs * self.steps_per_epoch

    @property
    def warmup(self) -> float:
        """Steps in which the learning rate rises."""
        return self.settings.warmup_epochs * self.steps_per_epoch

    @property
    def _horizon(self) -> float:
        return self.settings.stretch * self.steps

    def lr(self, step: int) -> float:
        """Linear warm-up, then as `schedule` says; scaled linearly with the batch size."""
        s = self.settings
        scale = s.batch_size / s.lr_batch
        warmup = self.warmup
        if step < warmup:
            return scale * (s.lr_start + (s.lr - s.lr_start) * step / warmup)
        if s.schedule == "constant":
            start = max(warmup, (1 - s.decay) * self.steps)
            progress = min(1.0, max(0.0, step - start) / max(1.0, self.steps - start))
            return scale * (s.lr + (s.lr_final - s.lr) * progress)
        progress = min(1.0, (step - warmup) / max(1.0, self._horizon - warmup))
        return scale * cosine(s.lr, s.lr_final, math.pi * progress)

    def weight_decay(self, step: int) -> float:
        """Cosine from `weight_decay` to `weight_decay_final`."""
        s = self.settings
        progress = min(1.0, step / self._horizon)
        return cosine(s.weight_decay, s.weight_decay_final, math.pi * progress)

    def ema(self, step: int) -> float:
        """Linear from `ema` to `ema_final`."""
        s = self.settings
        return s.ema + (s.ema_final - s.ema) * min(1.0, step / self._horizon)


def apply_schedule(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Set the step's learning rate and weight decay."""
    for group in optimiser.param_groups:
        group["lr"] = schedule.lr(step)
        if group["decays"]:
            group["weight_decay"] = schedule.weight_decay(step)


LAG = 2
"""Steps after which `Updates` looks at what a GPU said of one: long done by then, so nobody waits."""


class Updates:
    """Counts the steps that moved the weights: the schedule's position, which a skipped step leaves where it is.

    On the CPU the count is exact at once. Asking a GPU right away would make the host wait for it; there a step counts
    as finite until it is looked at, LAG steps later, so a skipped one puts the schedule ahead by one for LAG steps.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    @property
    def position(self) -> int:
        """Updates so far: the step of the schedule that comes next."""
        return self.count + len(self.pending)

    def add(self, finite: Bool[Tensor, ""]) -> None:
        """Count one more step, if it was finite."""
        if finite.is_cuda:
            flag, event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
            flag.copy_(finite, non_blocking=True)
            event.record()
            self.pending.append((flag, event))
            self.settle(LAG)
        else:
            self.pending.append((finite, None))
            if finite.device.type == "cpu":  # other devices are asked when a line of metrics is due
                self.settle()

    def settle(self, lag: int = 0) -> int:
        """Look at all steps but the latest `lag`; returns the position."""
        while len(self.pending) > lag:
            flag, event = self.pending.popleft()
            if event:
                event.synchronize()
            self.count += int(flag)
        return self.position


class Votes:
    """Whether any rank was asked from outside to stop: summed with the loss, so that all know it of the same step."""

    def __init__(self) -> None:
        self.own = 0
        """What this process was asked: 0 to go on, 1 to stop by Ctrl-C, 2 by a scheduler."""
        self.agreed = 0
        """The same of all ranks, known LAG steps later on a GPU."""
        self.pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def shared(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss of all ranks, from this one's; the votes go with it."""
        if distributed.size() == 1:
            return loss
        votes = [torch.full_like(loss, float(self.own == kind)) for kind in (1, 2)]
        mean, *votes = distributed.all_reduce_mean(torch.stack([loss, *votes])).unbind()
        if loss.is_cuda:
            kept, event = torch.empty(2, pin_memory=True), torch.cuda.Event()
            kept.copy_(torch.stack(votes), non_blocking=True)
            event.record()
            self.pending.append((kept, event))
        else:
            self.pending.append((torch.stack(votes), None))
        while len(self.pending) > (LAG if loss.is_cuda else 0):
            kept, event = self.pending.popleft()
            if event:
                event.synchronize()
            self.agreed = max([self.agreed, *(kind for kind in (1, 2) if kept[kind - 1] > 0)])
        return mean
