"""Learning rate, weight decay and EMA as pure functions of the step.

Schedules run to `stretch` times the training length, so training stops before they end (I-JEPA's ipe_scale).
"""

import math
from dataclasses import dataclass

import torch

from iwm.config import Optim
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
        return self.settings.epochs * self.steps_per_epoch

    @property
    def _horizon(self) -> float:
        return self.settings.stretch * self.steps

    def lr(self, step: int) -> float:
        """Linear warm-up, then cosine; scaled linearly with the batch size."""
        s = self.settings
        scale = s.batch_size / s.lr_batch
        warmup = s.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return scale * (s.lr_start + (s.lr - s.lr_start) * step / warmup)
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
