"""What a pretraining would do and cost, said before it begins; nothing is written (`iwm pretrain ... --dry-run`).

Steps are counted; the seconds of one are measured on this machine with a batch as large as fits into a second.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from iwm import config
from iwm.data.crops import steps_at_start
from iwm.data.image_sets import ImageSet, require_batch
from iwm.data.loader import Batch
from iwm.data.splits import share_of_each_class
from iwm.model.cost import at_start, cost
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import pace
from iwm.runtime.console import warn_once
from iwm.runtime.devices import Session
from iwm.runtime.pace import Pace
from iwm.training import loop, remarks, token_store
from iwm.training.schedule import Schedule
from iwm.training.step import Training
from iwm.training.token_training import keeps_tokens, tokens_folder

LEAST = 2
"""Images of the smallest batch that every objective has a loss for."""


def pretrain(settings: config.Config, images: int = 0) -> dict[str, Any]:
    """What `iwm pretrain` would do on so many of the images (0: all), and the time, memory and disk it takes.

    Raises UserError as training does.
    """
    settings, run, source = loop.checked(settings)
    if images:
        source = share_of_each_class(source, images, settings.run.seed)
    state = loop.newest_state(run, settings, source)
    start = state.step if state else 0
    require_batch(settings.optim.batch_size, len(source), source.name)
    schedule = Schedule(settings.optim, len(source) // settings.optim.batch_size)
    steps = schedule.steps
    loop.require_steps_left(settings, run, start, steps)
    for sentence in remarks.before(settings, source, schedule):
        warn_once(sentence)
    left = steps - start
    size = cost(settings)
    writes, tokens = [run.config, run.metrics, run.checkpoints, run.model], 0
    if keeps_tokens(settings):
        writes.append(tokens_folder(settings, run.path))
        tokens = token_store.size_of(settings, len(source))
    with Session.open(settings.speed) as session:
        weights, step = _step(settings, source, session, settings.init if not start else "")
        early = _early(settings, source, session, steps - left, steps) if step else (0, 0.0)
    return {
        "images": len(source),
        "steps": steps,
        "steps_left": left,
        "images_per_step": settings.optim.batch_size,
        "device": f"{session.device.type} in {session.precision}",
        "encoder_parameters": size.encoder_parameters,
        "predictor_parameters": size.predictor_parameters,
        "flops_per_image": size.train_flops,
        **_times(settings, step, left, *early),
        **({"tokens_gb": round(tokens / 1e9, 3)} if tokens else {}),
        "disk_gb": round((3 * weights * settings.run.keep + weights + tokens) / 1e9, 3),
        "writes": [str(place) for place in writes],
    }


def _early(settings: config.Config, source: ImageSet, session: Session, done: int, steps: int) -> tuple[int, float]:
    """How many of the steps that are left have smaller images (data.start_size), and the seconds of one."""
    count = max(0, steps_at_start(settings.data, steps) - done)
    step = _step(at_start(settings), source, session)[1] if count else None
    return (count, step.seconds_of(settings.optim.batch_size)) if step else (0, 0.0)


def _times(
    settings: config.Config, step: Pace | None, left: int, early: int = 0, early_seconds: float = 0.0
) -> dict[str, Any]:
    """The entries on time and memory; `early` of the steps that are left take `early_seconds` each."""
    if step is None:
        why = "not known: the encoder's tokens are given once, at the beginning"
        return {"seconds": None, "time": why, "memory_gb": None}
    optim = settings.optim
    seconds = step.seconds_of(optim.batch_size)
    total = seconds * (left - early) + early_seconds * early
    return {
        "seconds_per_step": seconds,
        "seconds": total,
        "time": pace.in_words(total),
        "memory_gb": round(step.bytes_in_batch(optim.batch_size // optim.accumulate) / 1e9, 2),
        "measured": f"one step of {step.count} images; reading, health checks and images in memory come on top",
    }


def _step(settings: config.Config, source: ImageSet, session: Session, init: str = "") -> tuple[int, Pace | None]:
    """Bytes of the weights, and the pace of a step; none where its tokens are given before. Raises UserError for an
    `init` that training would refuse."""
    small = replace(
        settings,
        optim=replace(settings.optim, accumulate=1),
        speed=replace(settings.speed, compile=False),
        encoder=replace(settings.encoder, views=0) if keeps_tokens(settings) else settings.encoder,
    )
    steps = max(1, len(source) // settings.optim.batch_size)

    def prepare(model: ImageWorldModel) -> None:
        if init:
            loop.initialise_from(model, init)

    training = Training.start(small, steps, session, prepare)
    weights = sum(value.nbytes for value in training.model.state_dict().values())
    if keeps_tokens(settings):
        return weights, None
    number = iter(range(1_000_000))

    def step(count: int) -> None:
        training.step(_batch(small, count, next(number), session))

    most = settings.optim.batch_size // settings.optim.accumulate
    return weights, pace.measure(step, most, session.device, LEAST)


def _batch(settings: config.Config, count: int, step: int, session: Session) -> Batch:
    """Noise in the place of images."""
    size, generator = settings.data.image_size, torch.Generator().manual_seed(step)
    pairs = settings.views.geometry == "independent"

    def crops() -> torch.Tensor:
        return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    images, others = crops().to(session.device), crops().to(session.device) if pairs else None
    return Batch(step, np.arange(count), images, None, 0.0, others)
