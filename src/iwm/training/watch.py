"""What a run says of itself while it is trained, as callbacks: a line of metrics every `run.log_every` steps."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.actions.reference import reference_actions
from iwm.actions.views import reference_views
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_all, load_pairs
from iwm.model.masks import sample_masks
from iwm.runtime import distributed, drawing
from iwm.runtime.console import console, progress, shows_bars
from iwm.runtime.errors import UserError
from iwm.training import gallery, health
from iwm.training.callbacks import Callback, State
from iwm.training.step import Training

HEALTH_IMAGES, FEWEST_IMAGES = 256, 64
"""Images of the fixed batch that health is measured on, and how few where an image has many patches: RankMe is not
above their number, and collapsed is far below."""
MOST_TOKENS = 2**16
"""Patches of this batch, which goes through the model at once: 256 images of 256 patches."""
PATIENCE = 10
"""Non-finite steps (skipped, weights untouched) of one line of metrics, or of several lines without a finite one, after
which a run is stopped as diverged; of a shorter run more than half."""


class HealthBatch(Callback):
    """A fixed batch of the source's own pictures, its views and masks drawn once; and views that show the changes of
    the reference, where a run's own are others."""

    def __init__(self, images: ImageSet, training: Training) -> None:
        s = training.settings
        patches = training.model.grid[0] * training.model.grid[1]
        count = min(HEALTH_IMAGES, max(FEWEST_IMAGES, MOST_TOKENS // patches), len(images))
        rows = np.linspace(0, len(images) - 1, count).astype(np.int64)
        step = -1  # no training step has this number, so these draws are nobody else's
        others = None
        if s.views.geometry == "independent":
            self.crops, others, kept = load_pairs(Subset(images, rows), s.data, s.run.seed, step)
        else:
            self.crops, kept = load_all(Subset(images, rows), s.data.image_size)
        rows = rows[kept]
        self.views = training.views((self.crops, others), rows, step)
        space, device = training.model.space, training.session.device
        self.masks = sample_masks(s.masks, training.model.grid, s.run.seed, step, rows, device)
        own = others is not None or s.actions == reference_actions(space.set)
        self.changes = None if own else reference_views(self.crops, space, s.run.seed, step, rows, device)

    def measure(self, training: Training) -> dict[str, float]:
        with training.session.autocast(), distributed.share(), distributed.alone():  # every rank has all of this batch
            return health.measure(training.model, self.views, self.masks, self.changes)

    def on_start(self, state: State) -> None:
        """The gallery of a run that begins."""
        if state.step == 0 and state.training.session.leads:
            model = state.model
            figure = gallery.gallery(self.crops, self.views, self.masks, model.space, model.grid)
            drawing.save(figure, state.run.gallery)

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        line |= self.measure(state.training)


class Watch(Callback):
    """What the steps since the last line were like: averaged loss, schedules, speed."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.reset()

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.waited = 0.0
        self.since = time.perf_counter()

    def on_start(self, state: State) -> None:
        self.reset()

    def on_step(self, state: State) -> None:
        self.losses.append(state.loss)
        self.finite.append(state.finite)
        self.waited += state.batch.waited

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        """Begin the line. The first place where host and device meet."""
        training, s = self.training, self.training.settings
        done, count = state.step, len(self.losses)
        skipped = count - int(torch.stack(self.finite).sum()) if count else 0
        seconds = time.perf_counter() - self.since
        schedule, latest = training.schedule, max(0, training.updates.settle() - 1)
        line |= {
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


class LineEnd(Callback):
    """Comes last: stops a run that has diverged, and lets the watch's time of the next line begin."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.done = self.in_a_row = 0

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        """Raises UserError on divergence."""
        count, skipped = len(self.watch.losses), line["skipped"]
        self.watch.reset()
        self.done += count
        self.in_a_row = skipped + (self.in_a_row if skipped == count else 0)
        if self.in_a_row >= PATIENCE or (state.final and self.in_a_row > self.done / 2):
            raise UserError(
                f"Training diverged: {self.in_a_row} of the latest steps were not finite and were skipped. The last "
                "good checkpoint is kept; lower optim.lr or set optim.clip, in a new --out."
            )


class ProgressBar(Callback):
    """The bar on a terminal or in a notebook, lines in a log file."""

    def __init__(self) -> None:
        self.bar = progress()

    def on_start(self, state: State) -> None:
        self.bar.start()
        self.task = self.bar.add_task("pretrain", total=state.steps, completed=state.step, note="")

    def on_step(self, state: State) -> None:
        self.bar.update(self.task, completed=state.step)

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        note = f"loss {line['loss']:.3f}  {line['images_per_second']:.0f} images/s"
        self.bar.update(self.task, note=note)
        if not shows_bars():  # a log file shows no bar: say it in lines
            console.print(f"step {state.step:,} of {state.steps:,}  {note}")

    def on_end(self, state: State) -> None:
        self.bar.stop()
