"""What a run says of itself while it is trained: a line of metrics every `run.log_every` steps."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_all, load_pairs
from iwm.model.masks import sample_masks
from iwm.runtime.errors import UserError
from iwm.training import health
from iwm.training.metrics import Metrics
from iwm.training.online_probe import OnlineProbe
from iwm.training.step import Training

HEALTH_IMAGES = 256
"""Images of the fixed batch that health is measured on."""
PATIENCE = 10
"""Non-finite steps (skipped, weights untouched) of one line of metrics, or of several lines without a finite one, after
which a run is stopped as diverged; of a shorter run more than half."""


class HealthBatch:
    """A fixed batch of the source's own pictures, its views and masks drawn once."""

    def __init__(self, images: ImageSet, training: Training) -> None:
        s = training.settings
        count = min(HEALTH_IMAGES, len(images))
        rows = np.linspace(0, len(images) - 1, count).astype(np.int64)
        step = -1  # no training step has this number, so these draws are nobody else's
        others = None
        if s.views.geometry == "independent":
            self.crops, others, kept = load_pairs(Subset(images, rows), s.data, s.run.seed, step)
        else:
            self.crops, kept = load_all(Subset(images, rows), s.data.image_size)
        rows = rows[kept]
        self.views = training.views((self.crops, others), rows, step)
        self.masks = sample_masks(s.masks, training.model.grid, s.run.seed, step, rows, training.session.device)

    def measure(self, training: Training) -> dict[str, float]:
        with training.session.autocast():
            return health.measure(training.model, self.views, self.masks)


class Watch:
    """Writes a line of metrics every `log_every` steps: averaged loss, speed, health, online probe."""

    def __init__(
        self, batch: HealthBatch, probe: OnlineProbe | None, metrics: Metrics, training: Training, images: int
    ):
        self.batch, self.probe, self.metrics, self.training = batch, probe, metrics, training
        self.images = images
        self.last: dict[str, Any] = {}
        self.done = self.in_a_row = 0
        self.reset()

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.waited = 0.0
        self.since = time.perf_counter()

    def step(self, loss: Tensor, finite: Tensor, waited: float) -> None:
        self.losses.append(loss)
        self.finite.append(finite)
        self.waited += waited

    def line(self, done: int, final: bool) -> dict[str, Any]:
        """The line after `done` steps. The only place where host and device meet. Raises UserError on divergence."""
        training, s = self.training, self.training.settings
        count = len(self.losses)
        skipped = count - int(torch.stack(self.finite).sum()) if count else 0
        seconds = time.perf_counter() - self.since
        schedule, latest = training.schedule, max(0, training.updates.settle() - 1)
        line: dict[str, Any] = {
            "step": done,
            "epoch": round(done / schedule.steps_per_epoch, 4),
            "loss": float(torch.stack(self.losses)[torch.stack(self.finite)].mean()) if count else float("nan"),
            "lr": schedule.lr(latest),
            "weight_decay": schedule.weight_decay(latest),
            "ema": schedule.ema(latest),
            "images_per_second": round(count * s.optim.batch_size / seconds, 2),
            "waited_share": round(self.waited / seconds, 4),
            "skipped": skipped,
            "precision": training.session.precision,
        }
        line |= self.batch.measure(training)
        if self.probe and (final or done % (s.run.log_every * s.run.probe_every) == 0):
            with training.session.autocast():
                line["probe_top1"] = self.probe.accuracy(training.model)
        self.metrics.write(line)
        self.last = line
        self.reset()
        self.done += count
        self.in_a_row = skipped + (self.in_a_row if skipped == count else 0)
        if self.in_a_row >= PATIENCE or (final and self.in_a_row > self.done / 2):
            raise UserError(
                f"Training diverged: {self.in_a_row} of the latest steps were not finite and were skipped. The last "
                "good checkpoint is kept; lower optim.lr or set optim.clip, in a new --out."
            )
        return line
