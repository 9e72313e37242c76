"""Training a predictor on tokens that were encoded once: pairs of views in place of pictures.

    source ~ all K views of a crop,   target ~ its views that carry nothing destructive, another one
    a = (w(target) - w(source)) / range,  and a flag for what only the source carries

A step that `masks.whole` makes a whole one has the untouched crop as its source. Health is measured on pictures.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iwm import config
from iwm.actions.action_space import Parameters
from iwm.actions.views import TokenViews
from iwm.data.image_sets import ImageSet, require_batch
from iwm.data.loader import Batch, order_of_epoch
from iwm.model import pretrained
from iwm.model.foreign_encoder import stands_still
from iwm.model.masks import is_whole
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, distributed
from iwm.runtime.devices import Session
from iwm.runtime.randomness import uniforms
from iwm.training import checkpoint, step, token_store
from iwm.training.checkpoint import Checkpoint
from iwm.training.step import Part, Training
from iwm.training.token_store import TokenStore


def keeps_tokens(settings: config.Config) -> bool:
    """Whether the encoder's tokens are kept instead of given anew in every step."""
    return stands_still(settings.encoder) and settings.encoder.views > 0 and settings.objective.kind == "latent"


def tokens_folder(settings: config.Config, out: Path) -> Path:
    """Where the tokens of the run `out` are kept; other runs may find them there."""
    return Path(settings.speed.tokens).expanduser() if settings.speed.tokens else out.parent / "tokens"


@dataclass(frozen=True, kw_only=True)
class TokenBatch(Batch):
    """A batch of pairs of views; it has no pictures."""

    views: TokenViews


class TokenLoader:
    """Endless batches of pairs: batch `step` is a pure function of the store, the settings, seed and step. For an image
    that could not be read the next one stands in, so its number and order do not depend on which can. Of several ranks
    each takes its rows of every micro-batch."""

    place = "tokens from the disk"

    def __init__(
        self, store: TokenStore, source: ImageSet, settings: config.Config, start_step: int, device: torch.device
    ) -> None:
        batch, self.count = settings.optim.batch_size, len(source)
        require_batch(batch, len(store), settings.data.source)
        self.store, self.settings, self.start_step, self.device = store, settings, start_step, device
        self.steps_per_epoch = self.count // batch
        places = np.arange(self.count)
        self.rows = np.searchsorted(store.images, places) % len(store)
        self.places = np.concatenate([np.array(part) for part in distributed.rows_of(batch, settings.optim.accumulate)])
        self.broken = [source.path(int(place)) for place in np.setdiff1d(places, store.images)]

    def __iter__(self) -> Iterator[TokenBatch]:
        step = self.start_step
        while True:
            since = time.perf_counter()
            views = self.pairs(step)
            none = torch.empty(len(views.indices), 3, 0, 0, dtype=torch.uint8)
            waited = time.perf_counter() - since
            yield TokenBatch(step, views.indices, none, None, waited, views=views)
            step += 1

    def close(self) -> None:
        """Nothing runs beside it."""

    def pairs(self, step: int) -> TokenViews:
        """The pairs of one step: rows in an order of the epoch's own, crop, source and target drawn for each."""
        seed, size = self.settings.run.seed, self.settings.optim.batch_size
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = self.rows[order_of_epoch(seed, epoch, self.count)[batch * size + self.places]]
        plan, images = self.store.plan, self.store.images[rows]
        numbers = uniforms(seed, "pairs", step, images, 3)
        crops = (numbers[:, 0] * plan.crops).astype(np.int64)
        sources = (numbers[:, 1] * plan.views).astype(np.int64)
        if is_whole(self.settings.masks, step):
            sources[:] = 0
        # Another view than the source: where that is among the targets, it is passed over.
        choices = plan.targets - (sources < plan.targets)
        targets = (numbers[:, 2] * choices).astype(np.int64)
        targets += (sources < plan.targets) & (targets >= sources)
        action = plan.space.difference(*(self._parameters(images, crops, views) for views in (sources, targets)))
        tokens = (self.store.take(rows, crops, views) for views in (sources, targets))
        source, target = (devices.upload(each, self.device).float() for each in tokens)
        return TokenViews(source, target, devices.upload(action, self.device), images)

    def _parameters(self, images: np.ndarray, crops: np.ndarray, views: np.ndarray) -> Parameters:
        """The parameters of one view of each image."""
        plan = self.store.plan
        neutral = plan.space.neutral(len(images))
        values, applied = neutral.values.clone(), neutral.applied.clone()
        for crop, view in np.unique(np.stack([crops, views]), axis=1).T:
            where = np.flatnonzero((crops == crop) & (views == view))
            changes = plan.parameters(images[where], int(crop), int(view))
            values[where], applied[where] = changes.values, changes.applied
        return Parameters(values, applied)


class TokenTraining(Training):
    """A training state whose batches are pairs of views; its health is measured on pictures like any other's."""

    def micro_batches(self, batch: Batch) -> list[tuple[Part, np.ndarray]]:
        assert isinstance(batch, TokenBatch)
        parts = batch.views.chunk(self.settings.optim.accumulate)
        return [(part, part.indices) for part in parts]


def begin(
    settings: config.Config,
    source: ImageSet,
    out: Path,
    session: Session,
    state: Checkpoint | None = None,
    prepare: Callable[[ImageWorldModel], object] = lambda model: None,
) -> tuple[Training, TokenLoader]:
    """The state before the first step, once every view is encoded, and the batches from the step of `state` on.
    `prepare` gets the model with its encoder, to start from other weights, before anything is encoded.

    A checkpoint holds the encoder too, so to go on its own file of weights is not needed.
    """
    model, start = step.build(settings, session.device), state.step if state else 0
    if state:
        checkpoint.restore_weights(state, model)
    else:
        pretrained.load_into(model)
        prepare(model)
    choose_attention(model, session.device, session.precision)
    store = token_store.build(model.eval(), source, tokens_folder(settings, out), session)
    loader = TokenLoader(store, source, settings, start, session.device)

    def prepared(fresh: ImageWorldModel) -> None:
        fresh.load_state_dict(model.state_dict())

    return TokenTraining.start(settings, loader.steps_per_epoch, session, prepared), loader
