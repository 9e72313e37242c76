"""Images of a source, to choose from and to search: "this, but darker".

    score_j = cos(s(mean_i p(f(x), a)_i), s(mean_i target(y_j)_i))        s: standardised over the source's images

The query is what the model predicts of the changed image, the candidates are the source's images as they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.pixel_search import reach_with_flags
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_chunks
from iwm.data.sources import open_splits
from iwm.data.splits import shuffled_rows
from iwm.evaluation.world.imagine import source_to_undo
from iwm.model.world_model import ImageWorldModel
from iwm.page.pace import MOST, Pace
from iwm.page.pictures import Picture
from iwm.page.sliders import parts_of
from iwm.runtime.algebra import standardisation
from iwm.runtime.errors import UserError

NEAREST = 8
"""Images that an answer shows."""


class Folder:
    """Up to `most` images of a source, held-out ones first, decoded and encoded one piece after another."""

    def __init__(self, model: ImageWorldModel, source: str, most: int, seed: int) -> None:
        """Open the source and decode the first images. Raises UserError when there are none."""
        size = model.settings.data.image_size
        train, valid, _ = open_splits(source, size=size)
        held = Subset(valid, shuffled_rows(most, len(valid), seed))
        others = Subset(train, shuffled_rows(most - len(held), len(train), seed))
        self.model, self.name, self.total = model, valid.name, len(held) + len(others)
        self.pixels: list[UInt8[Tensor, "3 s s"]] = []
        self.names: list[str] = []
        self.features = torch.empty(0, 0)
        """Pooled targets [m, d] of the first m images."""
        self._coming: Iterator[tuple[Tensor, list[str]]] | None
        self._coming = _chunks([part for part in (held, others) if len(part)], size)
        self._pace = Pace()
        self._decode()

    @property
    def ready(self) -> int:
        return len(self.features)

    @property
    def complete(self) -> bool:
        """Whether every image that can be decoded is encoded."""
        return self._coming is None and self.ready == len(self.pixels)

    def get(self, key: str) -> Picture | None:
        """The image of a key "f" and its place; None where there is none."""
        place = int(key[1:]) if re.fullmatch("f[0-9]{1,9}", key) else -1
        return Picture(self.pixels[place], self.names[place]) if 0 <= place < len(self.pixels) else None

    @torch.no_grad()
    def step(self) -> None:
        """Encode some more of the decoded images, or decode some more."""
        if self.ready == len(self.pixels):
            self._decode()
            return
        with self._pace.of_images(len(self.pixels) - self.ready) as count:
            images = torch.stack(self.pixels[self.ready : self.ready + count])
            pooled = self.model.target(images).pooled.float().cpu()
        self.features = torch.cat([self.features, pooled]) if self.ready else pooled

    def _decode(self) -> None:
        chunk = next(self._coming, None) if self._coming is not None else None
        if chunk is None:
            self._coming, self.total = None, len(self.pixels)
            return
        images, names = chunk
        self.pixels += images.unbind()
        self.names += names

    @torch.no_grad()
    def search(self, key: str, picture: Picture, action: Float[Tensor, " k"]) -> dict[str, Any]:
        """The images nearest to the changed one, and to it as it is, without the image itself.

        Every one with its name, its cosine, and its mean brightness less the image's. Raises UserError for what no
        source carries, and where there is only one image.
        """
        while self.ready < 2 and not self.complete:
            self.step()
        if self.ready < 2:
            raise UserError(f"{self.name} holds a single image, too few to search; give more by --data or --images.")
        model, space = self.model, self.model.space
        undone, reached = parts_of(space, action)
        clean = picture.pixels[None].to(model.device).float() / 255
        source = space.apply(clean, source_to_undo(space, undone))
        tokens = model.encode(source)
        changed = model.predict(tokens, action.to(model.device)).pooled.float().cpu()
        still = model.predict(model.encode(clean), space.null(1)[0]).pooled.float().cpu()
        wanted = float(space.apply(clean, reach_with_flags(space, reached)).mean() - clean.mean())
        return {
            "words": space.describe(action),
            "searched": self.ready,
            "total": self.total,
            "source": self.name,
            "brightness": wanted,
            "nearest": self._nearest(key, clean, changed),
            "unchanged": self._nearest(key, clean, still),
        }

    def _nearest(
        self, key: str, clean: Float[Tensor, "1 3 s s"], query: Float[Tensor, "1 d"]
    ) -> list[dict[str, str | float]]:
        mean, deviation = standardisation(self.features)
        scores = F.cosine_similarity((query - mean) / deviation, (self.features - mean) / deviation)
        if key[:1] == "f" and int(key[1:]) < len(scores):
            scores[int(key[1:])] = -torch.inf
        places = [int(place) for place in scores.topk(min(NEAREST, len(scores) - 1)).indices]
        return [
            {
                "key": f"f{place}",
                "name": self.names[place],
                "score": float(scores[place]),
                "brightness": float(self.pixels[place].float().mean() / 255 - clean.cpu().mean()),
            }
            for place in places
        ]


def _chunks(parts: Sequence[ImageSet], size: int) -> Iterator[tuple[UInt8[Tensor, "n 3 s s"], list[str]]]:
    """Decoded images, and the last part of their paths, a piece at a time. Raises UserError when there is none."""
    any_image, complaint = False, None
    for images in parts:
        try:
            for pixels, rows in load_chunks(images, size, MOST):
                any_image = True
                yield pixels, [images.path(int(row)).rsplit("/", 1)[-1] for row in np.asarray(rows)]
        except UserError as error:  # of this part; its broken images are named already
            complaint = error
    if complaint and not any_image:
        raise complaint
