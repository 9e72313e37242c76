"""The training loop: load -> views -> masks -> loss -> finite check -> step -> EMA -> log -> save.

Everything random is a pure function of (seed, step, image index), so a resumed run continues bit for bit on a CPU (on a
GPU attention's gradients are not the same twice).
"""

import gc
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm import config, run_folder
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import Loader, load_all, load_pairs
from iwm.data.sources import open_images, source_identity
from iwm.model import pretrained, weights
from iwm.model.masks import sample_masks
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import read_metrics
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress
from iwm.runtime.errors import Interrupted, UserError
from iwm.training import checkpoint, gallery, health
from iwm.training.metrics import Metrics
from iwm.training.online_probe import OnlineProbe
from iwm.training.step import Training

HEALTH_IMAGES = 256
"""Images of the fixed batch that health is measured on."""
PATIENCE = 10
"""Non-finite steps (skipped, weights untouched) of one line of metrics, or of several lines without a finite one, after
which a run is stopped as diverged; of a shorter run more than half."""


def check_drift(old: config.Config, new: config.Config, out: Path) -> None:
    """On resume only the speed and run groups, the number of epochs and the folder that the source lies in may differ.

    Raises UserError naming the first setting that drifted.
    """
    source, now_at = old.data.source, new.data.source
    if source != now_at and _names(source) == _names(now_at):
        console.print(f"The pictures of {out} were at {source}, now they are at {now_at}.")
        old = replace(old, data=replace(old.data, source=now_at))
    was, now = config.flatten(config.to_dict(old)), config.flatten(config.to_dict(new))
    free = {"optim.epochs", "recipe"}
    for name, value in now.items():
        group = name.split(".")[0]
        if was.get(name) != value and (name == "run.seed" or (group not in ("speed", "run") and name not in free)):
            raise UserError(
                f"{out} holds a run with {name} = {was.get(name)!r}, now it is {value!r}; give another --out, or the "
                "old setting to resume."
            )


def _names(source: str) -> list[str]:
    return [Path(part).name for part in source.split(",")]


def _was_saved(out: Path) -> bool:
    """Whether a run without checkpoints has got as far as its first; one stopped before that has nothing to lose."""
    lines = read_metrics(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else []
    return (out / "model").exists() or bool(
        lines and lines[-1]["step"] >= config.load(out / "config.yaml").run.save_every
    )


class HealthBatch:
    """A fixed batch of the source's own pictures, its views and masks drawn once."""

    def __init__(self, images: ImageSet, training: Training) -> None:
        s, device = training.settings, training.device
        count = min(HEALTH_IMAGES, len(images))
        chosen = np.linspace(0, len(images) - 1, count).astype(np.int64)
        step = -1  # no training step has this number, so these draws are nobody else's
        others = None
        if s.views.geometry == "independent":
            self.crops, others, kept = load_pairs(Subset(images, chosen), s.data, s.run.seed, step)
        else:
            self.crops, kept = load_all(Subset(images, chosen), s.data.image_size)
        chosen = chosen[kept]
        self.views = training.views((self.crops, others), chosen, step)
        self.masks = sample_masks(s.masks, training.model.grid, s.run.seed, step, chosen, device)

    def measure(self, training: Training) -> dict[str, float]:
        with devices.autocast(training.device, training.precision):
            return health.measure(training.model, self.views, self.masks)


def pretrain(settings: config.Config, source: ImageSet | None = None) -> Path:
    """Train a world model; returns the run folder with `config.yaml`, `metrics.jsonl`, `checkpoints/` and `model/`.

    `source` replaces opening `data.source`. Raises UserError for bad settings, Interrupted after Ctrl-C (saved).
    """
    if not settings.run.out:
        raise UserError("Where should the run go? Give --out FOLDER.")
    out = Path(settings.run.out).expanduser()
    config.validate(settings)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder as --out.")
    source = source or open_images(settings.data.source, "train", size=settings.data.image_size)
    # The source as anybody can find it again, from whatever folder the run is replayed or resumed.
    settings = replace(settings, data=replace(settings.data, source=source_identity(settings.data.source)))
    with devices.threads(settings.speed), devices.kept_memory():
        return _pretrain(settings, source, out)


def _pretrain(settings: config.Config, source: ImageSet, out: Path) -> Path:
    saved, complaints = checkpoint.newest(out / "checkpoints")
    for sentence in complaints:
        console.print(f"[yellow]{sentence} Going on from the one before.")
    if saved and not settings.run.resume:
        raise UserError(f"{out} already holds a run; give another --out, or leave out --no-resume to go on with it.")
    if saved:
        check_drift(saved.settings, settings, out)
    start = saved.step if saved else 0
    if not saved and (complaints or _was_saved(out)):
        raise UserError(f"{out} holds a run without its checkpoints; it is not written over, give another --out.")
    if saved and saved.images != len(source):
        raise UserError(
            f"{out} was trained on {saved.images:,} images, '{source.name}' now holds {len(source):,}; give the same "
            "pictures, or another --out."
        )

    pairs = settings.views.geometry == "independent"
    seed, batch_size = settings.run.seed, settings.optim.batch_size
    loader = Loader(source, settings.data, batch_size, seed, settings.speed, start, pairs=pairs)
    training = Training.start(settings, loader.steps_per_epoch)
    if saved:
        checkpoint.restore(saved, training.model, training.optimisers)
    elif settings.init:
        initialise_from(training.model, settings.init)
    steps = training.schedule.steps
    if start > steps:
        raise UserError(
            f"{out} is already at step {start}, past the {steps} steps of these settings; raise optim.epochs."
        )
    out.mkdir(parents=True, exist_ok=True)
    config.save(settings, out / "config.yaml")
    metrics = Metrics(out / "metrics.jsonl")
    metrics.cut_back(start)
    if start:
        console.print(f"Going on from step {start} of {steps}.")
    console.print(
        f"{len(source):,} images, {steps:,} steps of {settings.optim.batch_size}; {training.device.type} in "
        f"{training.precision}, {'in memory' if loader.in_memory else 'streamed'}."
    )
    probe = OnlineProbe.for_run(source, settings)
    batch = HealthBatch(source, training)
    if not start:
        shown = gallery.gallery(batch.crops, batch.views, batch.masks, training.model.space, training.model.grid)
        drawing.save(shown, out / "gallery.png")
    watch = Watch(batch, probe, metrics, training, len(source))
    if start < steps:  # of a finished run nothing is left to do but the export
        _loop(training, loader, watch, out, start)
    weights.export(training.model, out / "model", step=steps, precision=training.precision)
    verdict = health.judge(watch.last) if watch.last else None
    if verdict:
        console.print(f"[{'green' if verdict.healthy else 'red'}]{verdict.word}[/]: " + " ".join(verdict.findings))
    if loader.broken:
        console.print(f"[yellow]{len(loader.broken)} broken images were skipped.")
    return out


def initialise_from(model: ImageWorldModel, init: str) -> None:
    """Start from the weights of a RUN (everything) or of timm:NAME[,weights=PATH] (both encoders)."""
    if init.startswith("timm:"):
        pretrained.start_from_timm(model.encoder, init)
        model.target_encoder.load_state_dict(model.encoder.state_dict())
        return
    other = run_folder.load_model(init)
    kind, kinds = model.settings.objective.kind, other.settings.objective.kind
    if kind != kinds:
        raise UserError(
            f"{init} was trained with objective.kind {kinds}, these settings say {kind}; --init takes a run of the "
            "same kind."
        )
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"The weights of {init} do not fit these settings ({reason}); use the same sizes.") from None
    if model.settings.optim.freeze_encoder:  # what stands still is the encoder that is used afterwards
        model.encoder.load_state_dict(model.target_encoder.state_dict())


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
        schedule = training.schedule
        line: dict[str, Any] = {
            "step": done,
            "epoch": round(done / schedule.steps_per_epoch, 4),
            "loss": float(torch.stack(self.losses).mean()) if count else float("nan"),
            "lr": schedule.lr(done - 1),
            "weight_decay": schedule.weight_decay(done - 1),
            "ema": schedule.ema(done - 1),
            "images_per_second": round(count * s.optim.batch_size / seconds, 2),
            "waited_share": round(self.waited / seconds, 4),
            "skipped": skipped,
            "precision": training.precision,
        }
        line |= self.batch.measure(training)
        if self.probe and (final or done % (s.run.log_every * s.run.probe_every) == 0):
            with devices.autocast(training.device, training.precision):
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


def _loop(training: Training, loader: Loader, watch: Watch, out: Path, start: int) -> None:
    s, steps = training.settings, training.schedule.steps
    folder = out / "checkpoints"
    stop = _StopSignal()
    saved = start
    with stop, progress() as bar:
        task = bar.add_task("pretrain", total=steps, completed=start, note="")
        watch.reset()
        for batch in loader:
            loss, finite = training.step(batch)
            done = batch.step + 1
            watch.step(loss, finite, batch.waited)
            final = done == steps
            if final or done % s.run.log_every == 0:
                line = watch.line(done, final)
                note = f"loss {line['loss']:.3f}  {line['images_per_second']:.0f} images/s"
                bar.update(task, note=note)
                if not console.is_terminal:  # a log file shows no bar: say it in lines
                    console.print(f"step {done:,} of {steps:,}  {note}")
            if final or done % s.run.save_every == 0 or stop.asked:
                checkpoint.save(folder, done, training.model, training.optimisers, s.run.keep, watch.images)
                saved = done
            bar.update(task, completed=done)
            if final or stop.asked:
                break
        loader.close()
    if stop.asked and saved < steps:
        again = shlex.join(["iwm", "pretrain", "--config", str(out / "config.yaml"), "--out", str(out)])
        raise Interrupted(f"Saved at step {saved} of {steps}. Go on with: {again}")


class _StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag the loop reads after the step; a second Ctrl-C stops at once."""

    asked = False

    def __enter__(self) -> "_StopSignal":
        self.asked = False
        self.before: dict[int, Any] = {}
        try:
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self.before = {}  # not in the main thread: whoever runs us handles signals
        gc.collect()
        gc.freeze()  # the model and data live as long as the loop: no need to look through them again and again
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.print("Stopping after this step, saving...")

    def __exit__(self, *exc: object) -> None:
        gc.unfreeze()
        for number, handler in self.before.items():
            signal.signal(number, handler)
