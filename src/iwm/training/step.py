"""The state of a run and one optimiser step: crops -> views -> masks -> loss -> finite check -> step -> EMA.

Each of several ranks does this with its rows of the global batch. Gradients, loss and the decision to skip a step are
of all ranks.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from iwm import config
from iwm.actions.views import TokenViews, Views, make_independent_views, make_views
from iwm.data.loader import Batch
from iwm.model.masks import Masks, is_whole, sample_masks, source_count
from iwm.model.vit import Grid, checkpoint_blocks, choose_attention, compile_blocks
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, distributed, shards
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.training import parallel
from iwm.training.optimisers import make_optimisers
from iwm.training.schedule import Schedule, Updates, Votes, apply_schedule

Crops = tuple[Tensor, Tensor | None]
"""Crops of images, uint8 [b, 3, s, s], and where views share no geometry as many others."""
Part = Crops | TokenViews
"""What a micro-batch is made of: crops, or views that are tokens already."""


def build(settings: config.Config, device: torch.device) -> ImageWorldModel:
    """A model whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return ImageWorldModel(settings).to(device)


COMPILED_WIDTH, COMPILED_STEPS = 384, 5000
"""Encoders and runs for which `speed.compile` None compiles on CUDA: it costs a minute and saves a quarter of a step
(docs/cluster.md)."""


FIRST_STEPS = 20
"""Steps with one patch grid in which blocks may still be compiled, for context and for whole images: one rank may take
minutes longer than another, and is not taken for one that hangs."""


def compiles(settings: config.Config, session: Session, steps: int) -> bool:
    """Whether the blocks are compiled."""
    if settings.speed.compile is not None:
        return settings.speed.compile
    large = settings.encoder.width >= COMPILED_WIDTH and steps >= COMPILED_STEPS
    if not large or session.device.type != "cuda":
        return False
    able = importlib.util.find_spec("triton") is not None
    able = able and any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    if not able:
        console.print("The blocks are not compiled, which needs Triton and a C compiler; training is slower for it.")
    return able


@dataclass
class Training:
    """The state of a run and its step; `pretrain` is the loop around it."""

    settings: config.Config
    model: ImageWorldModel
    optimisers: list[torch.optim.Optimizer]
    schedule: Schedule
    session: Session
    updates: Updates = field(default_factory=Updates)
    votes: Votes = field(default_factory=Votes)
    """What other ranks were asked from outside."""
    steps: int = 0
    """Steps that this process has taken."""
    grid: Grid | None = None
    """Patch grid of the last crops."""
    since: int = 0
    """The first of `steps` with this grid."""
    averaged: nn.Module = field(init=False)
    """The model, or what averages its gradients over ranks: what a step calls."""
    parameters: list[nn.Parameter] = field(init=False)
    """The model's. To ask it in every step, for these and for `followers`, would take the host several milliseconds,
    for which a GPU waits."""
    followers: tuple[list[nn.Parameter], list[nn.Parameter]] = field(init=False)

    def __post_init__(self) -> None:
        ddp = self.session.ranks > 1 and not self.settings.speed.shard
        self.averaged = parallel.replicated(self.model, self.session) if ddp else self.model
        self.parameters, self.followers = list(self.model.parameters()), self.model.followers()

    @classmethod
    def start(
        cls,
        settings: config.Config,
        steps_per_epoch: int,
        session: Session,
        prepare: Callable[[ImageWorldModel], object] = lambda model: None,
    ) -> "Training":
        """The state before the first step. `prepare` gets the fresh model, to start from other weights."""
        model = build(settings, session.device).train()
        prepare(model)
        choose_attention(model, session.device, session.precision)
        schedule = Schedule(settings.optim, steps_per_epoch)
        if settings.speed.checkpoint_blocks:
            checkpoint_blocks(model)
        if compiles(settings, session, schedule.steps):
            compile_blocks(model)
        if settings.speed.shard and session.ranks > 1:
            parallel.shard(model, session)
        optimisers = make_optimisers(model, settings.optim, devices.dtype_of(session.precision))
        return cls(settings, model, optimisers, schedule, session)

    def micro_batches(self, batch: Batch) -> list[tuple[Part, np.ndarray]]:
        """The step's crops and indices, split into `optim.accumulate` parts; of several ranks, this one's."""
        parts = self.settings.optim.accumulate
        others = [None] * parts if batch.others is None else batch.others.chunk(parts)
        crops = zip(batch.images.chunk(parts), others, strict=True)
        return list(zip(crops, np.split(batch.indices, parts), strict=True))

    def views(self, crops: Crops, indices: np.ndarray, step: int) -> Views:
        """What the settings make of an image's crop, or of its two."""
        s, space = self.settings, self.model.space
        (first, other), device = crops, self.session.device
        if other is not None:
            return make_independent_views(first, other, space, s, s.run.seed, step, indices, device)
        clean, sources = is_whole(s.masks, step), source_count(s.masks, step)
        return make_views(first, space, s.actions, s.run.seed, step, indices, device, clean=clean, sources=sources)

    def _views_of(self, part: Part, indices: np.ndarray, step: int) -> Views | TokenViews:
        return part if isinstance(part, TokenViews) else self.views(part, indices, step)

    def views_and_masks(self, part: Part, indices: np.ndarray, step: int) -> tuple[Views | TokenViews, Masks]:
        """What one micro-batch asks of the model."""
        s = self.settings
        views = self._views_of(part, indices, step)
        grid = self.model.grid if isinstance(views, TokenViews) else self.model.encoder.grid_of(views.target)
        if grid != self.grid:  # images have grown: blocks may be compiled anew
            self.grid, self.since = grid, self.steps
            distributed.rest()
        return views, sample_masks(s.masks, grid, s.run.seed, step, indices, self.session.device)

    def loss(self, part: Part, indices: np.ndarray, step: int) -> Tensor:
        """One micro-batch forward: crops -> views -> masks -> loss."""
        views, masks = self.views_and_masks(part, indices, step)
        with self.session.autocast():
            return self.averaged(views, masks).loss

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimiser step. Returns loss and whether it was finite, both on the device: nothing is synchronised.

        A step with a non-finite loss or gradient is skipped on the device: weights, optimiser, teacher, target
        statistics and the schedule's position stay as they are (`Updates` says when a GPU's is known).
        """
        self._tick()
        parts = self.micro_batches(batch)
        if batch.step == 0:
            self._calibrate(parts)
        total = torch.zeros((), device=self.session.device)
        for parameter in self.parameters:
            parameter.grad = None
        for number, (part, indices) in enumerate(parts, start=1):
            with parallel.averaging(self.averaged, last=number == len(parts)):
                loss = self.loss(part, indices, batch.step) / len(parts)
                self._tick()
                loss.backward()
            total += loss.detach()
        if not self.settings.objective.whole_gradient and is_whole(self.settings.masks, batch.step):
            for parameter in self.model.encoder.parameters():
                parameter.grad = None  # of ranks it is zeros, by which momentum and decay would move the encoder
        total = self.votes.shared(total)
        trainable = [p for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainable if p.grad is not None], foreach=True)
        if self.settings.optim.clip:
            torch.nn.utils.clip_grads_with_norm_(trainable, self.settings.optim.clip, norm, foreach=True)
        norm = shards.whole(norm)
        finite = torch.isfinite(total) & torch.isfinite(norm)
        skipped, position = (~finite).float(), self.updates.position
        for optimiser in self.optimisers:
            # The fused AdamW, and our Muon, leave everything untouched where `found_inf` is 1, without asking the host.
            optimiser.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue]
            optimiser.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
            apply_schedule(optimiser, self.schedule, position)
            optimiser.step()
        self.model.after_step(self.schedule.ema(position), finite, self.followers)
        self.updates.add(finite)
        self.steps += 1
        distributed.rest()
        return total, finite

    def _tick(self) -> None:
        """All ranks come here; what follows may take one of them longer while blocks are still compiled."""
        distributed.tick()
        if self.steps - self.since < FIRST_STEPS:
            distributed.rest()

    @torch.no_grad()
    def _calibrate(self, parts: list[tuple[Part, np.ndarray]]) -> None:
        """Before the first step: target statistics from its own images, whatever the number of micro-batches."""
        for part, indices in parts:
            views = self._views_of(part, indices, 0)
            with self.session.autocast():
                self.model.calibrate(views)
        self.model.target_norm.fold()
