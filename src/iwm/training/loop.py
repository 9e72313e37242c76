"""The training loop: load -> views -> masks -> loss -> finite check -> step -> EMA -> log -> save, with callbacks.

Everything random is a pure function of (seed, step, image index), so a resumed run continues bit for bit on a CPU (on a
GPU attention's gradients are not the same twice), and several ranks do what one would have done, up to rounding.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from iwm import config
from iwm.actions.action_sets import plain_set
from iwm.actions.action_space import ActionSpace, first_difference
from iwm.data import memory
from iwm.data.image_sets import ImageSet, require_batch
from iwm.data.loader import Loader
from iwm.data.sources import is_source, open_images, same_names, source_identity
from iwm.data.splits import training_record
from iwm.model import pretrained, weights
from iwm.model.encoder import Encoder
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder, init_identity, load_model, same_init
from iwm.runtime import devices, distributed, fields, files, launch
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.training import checkpoint, health, remarks
from iwm.training.callbacks import Callbacks, State, check_callbacks
from iwm.training.checkpoint import Checkpoint
from iwm.training.metrics import Metrics
from iwm.training.online_probe import OnlineProbe
from iwm.training.reporting import FREE, Reporting
from iwm.training.schedule import Schedule, Updates
from iwm.training.step import Training
from iwm.training.stop_signal import StopSignal
from iwm.training.token_training import TokenLoader, begin, keeps_tokens
from iwm.training.trackers import trackers_of
from iwm.training.validation import validate, with_encoder
from iwm.training.watch import HealthBatch, LineEnd, ProgressBar, Watch

GO_ON = "the same command goes on from the last checkpoint."
"""What to do when a rank was lost in training."""


def pretrain(settings: config.Config, source: ImageSet | None = None, callbacks: Sequence[Any] = ()) -> Path:
    """Train a world model; returns the run folder with `config.yaml`, `metrics.jsonl`, `checkpoints/` and `model/`.

    `source` replaces opening `data.source`; `callbacks` are objects with methods of `iwm.training.callbacks.Callback`.
    Of several processes started by torchrun or srun each trains its share of every batch; rank 0 alone writes, prints
    and calls `callbacks`. Raises UserError for bad settings and a folder that cannot be written, Busy while another
    process trains this run, Interrupted after Ctrl-C and Preempted after SIGTERM or SIGUSR1 (saved).
    """
    with distributed.together(GO_ON):  # first, so that what is wrong on one rank ends all
        return _pretrain_together(settings, source, callbacks)


def _pretrain_together(settings: config.Config, source: ImageSet | None, callbacks: Sequence[Any]) -> Path:
    """Check what was given, then train; only rank 0 locks the folder."""
    check_callbacks(callbacks)
    leads = distributed.rank() == 0
    settings, run, images = checked(settings, source, leads)
    lock = files.lock(run.training_lock, f"{run.path} is being trained") if leads else nullcontext()
    with lock, Session.open(settings.speed) as session, devices.kept_memory():
        _pretrain(settings, images, run, session, callbacks)
    return run.path


def checked(
    settings: config.Config, source: ImageSet | None = None, leads: bool = True
) -> tuple[config.Config, RunFolder, ImageSet]:
    """The settings in full, with source and init as anybody can find them again, the run's folder and the images, all
    fit for training; only the rank that `leads` looks whether the folder can be written. Writes nothing. Raises
    UserError naming what does not fit."""
    if not settings.run.out:
        raise UserError("Where should the run go? Give --out FOLDER.")
    run = RunFolder(Path(settings.run.out).expanduser())
    settings = with_encoder(settings)
    validate(settings, launch.place().size)  # of a dry run, which joins no others, too
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path} is a file; give a folder as --out.")
    if source is None and is_source(run.path, settings.data.source):
        raise UserError(
            f"--out {settings.run.out} is the source itself, and what is written there would join its images; give "
            "another folder (it may lie inside the source)."
        )
    if leads:
        trackers_of(settings.run.report_to)
        files.require_writable(run.path, "The run", "give another --out FOLDER.")
    images = source or open_images(settings.data.source, "train", size=settings.data.image_size)
    # From whatever folder the run is replayed or resumed.
    data = replace(settings.data, source=source_identity(settings.data.source))
    actions = replace(settings.actions, set=plain_set(settings.actions.set))
    return replace(settings, init=init_identity(settings.init), data=data, actions=actions), run, images


def _pretrain(
    settings: config.Config, source: ImageSet, run: RunFolder, session: Session, own: Sequence[Any] = ()
) -> None:
    """Go on with the run or begin it, train it to the end, export the weights."""
    state = newest_state(run, settings, source)
    start = state.step if state else 0
    require_batch(settings.optim.batch_size, len(source), source.name)
    require_steps_left(settings, run, start, Schedule(settings.optim, len(source) // settings.optim.batch_size).steps)
    first = distributed.of_first(start)
    if start != first:
        raise UserError(
            f"Rank 0 goes on from step {first} of {run.path}, this rank finds step {start} there; give an --out on a "
            "disk that all machines share."
        )
    training, loader = _begin(settings, source, run, session, state)
    if state:
        checkpoint.restore(state, training.model, training.optimisers)
        training.updates = Updates(state.updates)
    del state  # its tensors keep the file of the checkpoint mapped
    steps = training.schedule.steps
    saves = math.ceil((steps - start) / settings.run.save_every)
    if session.leads:
        checkpoint.require_space(run.checkpoints, training.model, min(settings.run.keep, saves) + 1)
        _write_beginning(run, settings, start)
    if start:
        console.print(f"Going on from step {start} of {steps}.")
    ranks = f" on {session.ranks} ranks" if session.ranks > 1 else ""
    console.print(
        f"{len(source):,} images, {steps:,} steps of {settings.optim.batch_size}; {session.device.type} in "
        f"{session.precision}{ranks}, {loader.place}."
    )
    for sentence in remarks.before(settings, source, training.schedule):
        console.print(sentence)
    now = State(run, training, source, start, steps)
    if start < steps:  # of a finished run nothing is left to do but the export
        _loop(now, loader, _callbacks(now, own))
    record = training_record(source)
    facts = {"images": len(source), **({"training_images": record} if record else {})}
    weights.export(training.model, run.model, step=steps, precision=session.precision, **facts)
    distributed.meet()  # whoever goes on may read what rank 0 has written
    _show_verdict(now, loader)


def require_steps_left(settings: config.Config, run: RunFolder, start: int, steps: int) -> None:
    """Raises UserError for a run that has got farther than its settings now say."""
    if start > steps:
        longer = "steps" if settings.optim.steps else "epochs"
        raise UserError(
            f"{run.path} is already at step {start}, past the {steps} steps of these settings; raise optim.{longer}."
        )


def _begin(
    settings: config.Config, source: ImageSet, run: RunFolder, session: Session, state: Checkpoint | None
) -> tuple[Training, Loader | TokenLoader]:
    """The state before the first step, from the weights of `init` where it names some, and the batches from the step
    of `state`, which brings every weight, on."""
    start, init = (state.step, "") if state else (0, settings.init)

    def prepare(model: ImageWorldModel) -> None:
        if settings.encoder.name and not start and not keeps_tokens(settings):  # which bring it
            pretrained.load_into(model)
        if init:
            initialise_from(model, init)

    if keeps_tokens(settings):
        return begin(settings, source, run.path, session, state, prepare)
    # The model first: what it refuses, `init` too, is said before images are decoded.
    training = Training.start(settings, len(source) // settings.optim.batch_size, session, prepare)
    return training, _loader(settings, source, session, start)


def _loader(settings: config.Config, source: ImageSet, session: Session, start: int) -> Loader:
    """The batches from step `start` on; of several ranks, this one's rows of each micro-batch."""
    pairs, count = settings.views.geometry == "independent", settings.optim.batch_size
    rows = distributed.rows_of(count, settings.optim.accumulate)
    steps = Schedule(settings.optim, len(source) // count).steps
    own = {"pairs": pairs, "rows": rows, "device": session.device}
    with distributed.share():  # small sets are decoded here
        return Loader(source, settings.data, count, settings.run.seed, settings.speed, start, steps, **own)


# ---- beginning -----------------------------------------------------------------------------------------------------


def newest_state(run: RunFolder, settings: config.Config, source: ImageSet) -> Checkpoint | None:
    """The checkpoint to go on from, None where the run begins; `settings` are `checked`. Raises UserError when the
    folder holds another run."""
    state, complaints = checkpoint.newest(run.checkpoints)
    for sentence in complaints:
        console.print(f"[yellow]{sentence} Going on from the one before.")
    if state and not settings.run.resume:
        raise UserError(
            f"{run.path} already holds a run; give another --out, or leave out --no-resume to go on with it."
        )
    if state:
        check_drift(state.settings, settings, run.path)
    if not state and (complaints or _was_saved(run)):
        raise UserError(f"{run.path} holds a run without its checkpoints; it is not written over, give another --out.")
    if state and state.images != len(source):
        raise UserError(
            f"{run.path} was trained on {state.images:,} images, '{source.name}' now holds {len(source):,}; give the "
            "same pictures, or another --out."
        )
    if state and state.training_images and state.training_images != training_record(source):
        raise UserError(
            f"{run.path} was trained on other images of '{source.name}'; put them back, or give another --out."
        )
    if state and state.actions is not None:
        _require_same_actions(state.actions, settings, run.path)
    return state


def _require_same_actions(old: Mapping[str, Any], settings: config.Config, out: Path) -> None:
    """Raises UserError where transformations, which no setting shows, are others now: the numbers of an action would
    mean something else."""
    new = ActionSpace.from_config(settings.actions, settings.data.image_size).spec()
    difference = first_difference(old, new)
    if difference:
        raise UserError(
            f"{out} was trained {difference}; put the transformations back as they were, or give another --out."
        )


def check_drift(old: config.Config, new: config.Config, out: Path) -> None:
    """On resume only the speed and run groups, the number of epochs and the folder that source or init lies in may
    differ.

    Raises UserError naming the first setting that drifted.
    """
    source, now_at = old.data.source, new.data.source
    if memory.is_memory(source) and memory.is_memory(now_at):
        if memory.content_of(source) != memory.content_of(now_at):
            raise UserError(
                f"{out} was trained on other images in memory (content {memory.content_of(source)}, now "
                f"{memory.content_of(now_at)}); give the same images and labels, or another --out."
            )
        old = replace(old, data=replace(old.data, source=now_at))
    elif source != now_at and same_names(source, now_at):
        console.print(f"The pictures of {out} were at {source}, now they are at {now_at}.")
        old = replace(old, data=replace(old.data, source=now_at))
    if old.init != new.init and same_init(old.init, new.init):
        console.print(f"The weights that {out} began with were at {old.init}, now they are at {new.init}.")
        old = replace(old, init=new.init)
    actions = replace(old.actions, set=plain_set(old.actions.set))  # older runs hold the file's folder
    old = replace(old, actions=actions)
    was, now = fields.flatten(fields.to_dict(old)), fields.flatten(fields.to_dict(new))
    for name, value in now.items():
        group = name.split(".")[0]
        if was.get(name) != value and (name == "run.seed" or (group not in ("speed", "run") and name not in FREE)):
            raise UserError(
                f"{out} holds a run with {name} = {was.get(name)!r}, now it is {value!r}; give another --out, or the "
                "old setting to resume."
            )
    _check_length(old, new, out)


def _check_length(old: config.Config, new: config.Config, out: Path) -> None:
    """Raises UserError for another length that would be passed over, or make images small again."""
    if new.optim.steps and old.optim.steps == new.optim.steps and old.optim.epochs != new.optim.epochs:
        raise UserError(
            f"{out} is trained for optim.steps {new.optim.steps}, and optim.epochs ({new.optim.epochs}) would decide "
            "nothing; give more --optim.steps, or 0 for epochs."
        )
    if new.data.start_size and (old.optim.steps, old.optim.epochs) != (new.optim.steps, new.optim.epochs):
        raise UserError(
            f"The images of {out} grow after a share of its length (data.start_size), which cannot change any more; "
            f"give the old length, or another --out with --init {out}."
        )


def _was_saved(run: RunFolder) -> bool:
    """Whether a run without checkpoints has got as far as its first; one stopped before that, or while it was written,
    has nothing to lose."""
    if checkpoint.was_cut_off(run.checkpoints):
        return run.model.exists()
    lines = run.metric_lines()
    return run.model.exists() or bool(lines and lines[-1]["step"] >= run.settings().run.save_every)


def initialise_from(model: ImageWorldModel, init: str) -> None:
    """Start from the weights of a RUN (everything), or of timm:NAME[,weights=PATH] or hf-hub:ID (both encoders)."""
    if pretrained.is_timm(init):
        if not isinstance(model.encoder, Encoder):
            raise UserError(f"init {init} and encoder.name both bring an encoder; give one of them.")
        pretrained.start_from_timm(model.encoder, init)
        model.target_encoder.load_state_dict(model.encoder.state_dict())
        return
    other = load_model(init)
    kind, kinds = model.settings.objective.kind, other.settings.objective.kind
    if kind != kinds:
        raise UserError(
            f"{init} was trained with objective.kind {kinds}, these settings say {kind}; --init takes a run of the "
            "same kind."
        )
    pretrained.start_from_run(model, other, init)
    if model.settings.encoder.train == "none":  # what stands still is the encoder that is used afterwards
        model.encoder.load_state_dict(model.target_encoder.state_dict())


def _write_beginning(run: RunFolder, settings: config.Config, start: int) -> None:
    """Write the settings; the metrics shall hold no line after step `start`."""
    files.mark_output(run.path)
    config.save(settings, run.config)
    Metrics(run.metrics).cut_back(start)


def _callbacks(state: State, own: Sequence[Any]) -> Callbacks:
    """All callbacks of a run: its measures, the user's own, and what writes and shows a line that is complete. Every
    rank measures, rank 0 does the rest."""
    watch = Watch(state.training)
    probe = OnlineProbe.for_run(state.images, state.settings)
    measures = [watch, HealthBatch(state.images, state.training), *([probe] if probe else [])]
    leads, reports = state.training.session.leads, bool(state.settings.run.report_to)
    copies = [Reporting(state.run, state.settings)] if reports else []
    shown = [*own, Metrics(state.run.metrics), *copies, ProgressBar()] if leads else []
    return Callbacks([*measures, *shown, LineEnd(watch)], own)


# ---- training ------------------------------------------------------------------------------------------------------


def _loop(state: State, loader: Loader | TokenLoader, callbacks: Callbacks) -> None:
    """Train from `state.step` to the last one. Raises Interrupted after Ctrl-C, UserError on divergence."""
    votes = state.training.votes
    stop = StopSignal(lambda: votes.agreed)
    last_save = state.step
    with stop:
        try:
            callbacks.start(state)
            for batch in stop.batches(loader):
                votes.own = stop.vote
                state.loss, state.finite = state.training.step(batch)
                state.step, state.batch = batch.step + 1, batch
                callbacks.step(state)
                if state.final or state.step % state.settings.run.log_every == 0:
                    callbacks.log(state)
                if state.final or state.step % state.settings.run.save_every == 0:
                    callbacks.checkpoint(state, _save(state))
                    last_save = state.step
                if state.final:
                    break
            if last_save < state.step:
                callbacks.checkpoint(state, _save(state))
                last_save = state.step
        finally:
            try:
                loader.close()
            finally:
                callbacks.end(state)
    if (stop.pending or votes.agreed) and last_save < state.steps:
        run = state.run
        again = shlex.join(["iwm", "pretrain", "--config", str(run.config), "--out", str(run.path)])
        if memory.is_memory(state.settings.data.source):
            again = "the same iwm.pretrain(..., data=IMAGES)"
        where = f"Saved at step {last_save} of {state.steps}" if last_save else "Stopped before the first step"
        raise stop.exception(f"{where}. Go on with: {again}")


def _save(state: State) -> Path:
    """Write a checkpoint; returns its folder."""
    training, keep, images = state.training, state.settings.run.keep, state.images
    facts = (keep, len(images), training.updates.settle(), training_record(images))
    return checkpoint.save(state.run.checkpoints, state.step, training.model, training.optimisers, *facts)


def _show_verdict(state: State, loader: Loader | TokenLoader) -> None:
    verdict = health.judge(state.line, state.settings.objective.kind) if state.line else None
    if verdict:
        word = (verdict.word, "green" if verdict.healthy else "red")
        console.print(Text.assemble(word, ": " + " ".join(verdict.findings)))
    if loader.broken:
        console.print(f"[yellow]{len(loader.broken)} broken images were skipped.")
