"""One change of one image, answered at once: what really comes out, what the model imagines, what of a bank is nearest.

The bank is the one of `iwm imagine`: versions of the image at the level `destructive`, the truth among them. Only the
truth depends on the action, so the others are encoded once an image, a few at a time: the first answer ranks among
those that are ready, and says how many.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.action_space import Parameters
from iwm.actions.pixel_search import reach_with_flags
from iwm.actions.reference import reference_space
from iwm.evaluation.world.imagine import source_to_undo
from iwm.evaluation.world.strips import decibels
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.page.pace import Pace
from iwm.page.pictures import data_uri, heat
from iwm.page.sliders import parts_of
from iwm.runtime.algebra import ranks, squared_distances

SAMPLE = 64
"""Versions that `Bank.spread` is taken of, and distances computed of at a time."""
KEPT = 128 * 2**20
"""Bytes of banks that are held."""


@dataclass
class Bank:
    """Versions of one image, as parameters, and the targets of those that are ready."""

    image: UInt8[Tensor, "1 3 s s"]
    parameters: Parameters
    targets: Float[Tensor, "v n d"] | None = None
    """Half precision; rows in the order of the parameters, the first `ready` of them filled."""
    ready: int = 0
    spread: float = 0.0
    """Mean squared difference of two random versions in target space, over patches and channels; of the first."""

    @classmethod
    def of(cls, model: ImageWorldModel, image: UInt8[Tensor, "3 s s"], size: int, seed: int) -> "Bank":
        """A bank of `size` versions, of which the truth will be one; nothing is encoded yet."""
        reference = reference_space(model.space, model.settings.data.image_size)
        return cls(image[None], reference.sample_bank(seed, 0, size - 1))

    @property
    def complete(self) -> bool:
        return self.ready == len(self.parameters)

    @property
    def bytes(self) -> int:
        return 0 if self.targets is None else self.targets.numel() * self.targets.element_size()

    def version(self, model: ImageWorldModel, rows: slice) -> Float[Tensor, "r 3 s s"]:
        """Some of the versions as images."""
        space = reference_space(model.space, model.settings.data.image_size)
        parameters = self.parameters[rows]
        clean = self.image.to(model.device).float() / 255
        return space.apply(clean.expand(len(parameters), -1, -1, -1), parameters)

    @torch.no_grad()
    def grow(self, model: ImageWorldModel, count: int) -> None:
        """Encode the next `count` versions."""
        versions = self.version(model, slice(self.ready, self.ready + count))
        targets = model.target(versions).values
        if self.targets is None:
            self.targets = targets.new_empty((len(self.parameters), *targets.shape[1:]), dtype=torch.half)
        self.targets[self.ready : self.ready + len(targets)] = targets
        self.ready += len(targets)
        if self.ready <= SAMPLE or not self.spread:
            self.spread = 2 * float(self.targets[: min(self.ready, SAMPLE)].float().var(dim=0, correction=0).mean())

    def distances(self, guess: Float[Tensor, "1 n d"], truth: Float[Tensor, "1 n d"]) -> Float[Tensor, " e"]:
        """Squared distances of a prediction to the truth, which comes first, and to the versions that are ready."""
        assert self.targets is not None
        # The truth is rounded like the others, or in a collapsed space it would not tie with them. A few at a time:
        # float64 copies of a whole bank at every answer would scatter the memory.
        parts = [truth.half(), *self.targets[: self.ready].split(SAMPLE)]
        return torch.cat([squared_distances(guess, part.float())[0] for part in parts])


@dataclass
class Banks:
    """Banks by the key of their image; past `most_bytes` the longest unused are forgotten."""

    model: ImageWorldModel
    size: int
    seed: int
    most_bytes: int = KEPT
    pace: Pace = field(default_factory=Pace)
    _kept: "OrderedDict[str, Bank]" = field(default_factory=OrderedDict)

    def of(self, key: str, image: UInt8[Tensor, "3 s s"]) -> Bank:
        """The bank of an image, with at least its first versions ready."""
        bank = self._kept.setdefault(key, Bank.of(self.model, image, self.size, self.seed))
        self._kept.move_to_end(key)
        if not bank.ready:
            self._grow(bank)
        while len(self._kept) > 1 and sum(one.bytes for one in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)
        return bank

    def grow_one(self) -> bool:
        """Encode some more of the newest bank that is not complete; False where all are."""
        for bank in reversed(self._kept.values()):
            if not bank.complete:
                self._grow(bank)
                return True
        return False

    def _grow(self, bank: Bank) -> None:
        with self.pace.of_images(len(bank.parameters) - bank.ready) as count:
            bank.grow(self.model, count)


@torch.no_grad()
def answer(model: ImageWorldModel, bank: Bank, action: Float[Tensor, " k"]) -> dict[str, Any]:
    """What comes of an action: pictures as data URIs, rank of the truth, PSNR (dB) where there is a decoder.

    `map` shows for every patch |prediction - truth|^2 in target space over that of two random versions of the image;
    `explained` is 1 - |prediction - truth|^2 / |source - truth|^2, None where the action changes nothing. Raises
    UserError for what no source carries.
    """
    space = model.space
    undone, reached = parts_of(space, action)
    clean = bank.image.to(model.device).float() / 255
    source = space.apply(clean, source_to_undo(space, undone))
    truth = space.apply(clean, reach_with_flags(space, reached))
    before, wanted = model.target(torch.cat([source, truth])).values.float().split(1)
    tokens = model.encode(source)
    prediction = model.predict(tokens, action.to(model.device))
    guess = prediction.values.float()

    distances = bank.distances(guess, wanted)
    rank, first = float(ranks(distances.expand(len(distances), -1))[0]), int(distances.argmin())
    nearest = truth if first == 0 else bank.version(model, slice(first - 1, first))
    nearest_change = action if first == 0 else _change_of(model, bank, first - 1)
    missed, moved = (guess - wanted).square().mean(2)[0], (before - wanted).square().mean(2)[0]
    map_ = (missed / max(bank.spread, 1e-12)).unflatten(0, tokens.grid).cpu()
    imagined = decoded = None
    if model.decodes:
        imagined, decoded = (model.decode(Tokens(values, tokens.grid))[0].cpu() for values in (guess, wanted))
    pictures = {"source": source[0], "truth": truth[0], "nearest": nearest[0], "map": heat(map_)}
    pictures |= {"imagined": imagined, "decoded": decoded} if imagined is not None and decoded is not None else {}
    return {
        "words": space.describe(action),
        "pictures": {name: data_uri(picture.cpu()) for name, picture in pictures.items()},
        "rank": rank,
        "ranked": len(distances),
        "bank": len(bank.parameters) + 1,
        "nearest_words": space.describe(nearest_change),
        "nearest_is_truth": first == 0,
        "missed": float(map_.mean()),
        "explained": float(1 - missed.sum() / moved.sum()) if float(moved.sum()) > 1e-9 else None,
        **decibels(source[0].cpu(), truth[0].cpu(), imagined, decoded),
    }


def _change_of(model: ImageWorldModel, bank: Bank, row: int) -> Float[Tensor, " k"]:
    """The action from the untouched image to one of its versions."""
    return model.space.difference(model.space.neutral(1), bank.parameters[row : row + 1])[0]
