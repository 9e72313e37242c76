"""All hold-outs and seeded choices of images: which are learned from, which are measured on.

A source without val/ of its own leaves a tenth of its images for measuring (`hold_out_images`). Of the training images
another tenth is left to choose a learning rate or a strength by (`tenth_of_each_class`, `tenth_of_rows`). Every choice
is a pure function of its seed.

The tenth is drawn by places in the list of the images: one image more or less, and it is another tenth, most of which
was trained on. So weights record what they were trained on (`training_record`), and who measures them on what is held
out of the same source is refused where that has changed (`measuring`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from iwm.data.image_sets import UNLABELLED, Files, ImageSet, Mix, Subset
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

# ---- images to measure on ------------------------------------------------------------------------------------------


class Rest(Subset):
    """A source's images without the tenth that was held out by lot."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """How many images the source holds ("images"), and a digest of the names of these ("sha256"); an array has
        places for names."""
        rows = self.indices.tolist()
        names = [self.images.names[row] for row in rows] if isinstance(self.images, Files) else map(str, rows)
        digest = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()
        return {"images": len(self.images), "sha256": digest}


def hold_out_images(images: ImageSet, seed: int, by_class: bool = True) -> tuple[Rest, ImageSet]:
    """A set without a seeded tenth, and that tenth; `by_class` draws it evenly from the classes, where there are some.

    Raises UserError when the set is a single image.
    """
    rest, tenth = hold_out_rows(len(images), images.name, seed, images.labels if by_class else None)
    return Rest(images, rest, "train"), Subset(images, tenth, "val")


def hold_out_rows(
    count: int, name: str, seed: int, labels: Int64[np.ndarray, " n"] | None = None
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " t"]]:
    """The other nine tenths and a seeded tenth of a set's indices, the tenth drawn evenly from all classes.

    The only image of a class stays with the rest. Raises UserError when the set is a single image.
    """
    if count < 2:
        raise UserError(f"'{name}' holds a single image, too few to hold some out; add images.")
    order = permutation(seed, "held out", 0, count)
    if labels is not None:
        order = _by_class(order, labels)
        several = order[np.bincount(labels + 1)[labels[order] + 1] > 1]  # images without a label are one class more
        order = several if len(several) else order
    chosen = np.zeros(count, dtype=bool)
    chosen[order[4::10] if len(order) >= 10 else order[:1]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# ---- whether what is held out was trained on ------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A RUN's training on a source of which a tenth was held out by lot."""

    run: str
    source: str
    """As `sources.source_identity` writes it."""
    record: Mapping[str, Any]
    """`Rest.record` of that time."""


_trainings: ContextVar[Sequence[Training]] = ContextVar("trainings", default=())


def training_record(images: ImageSet) -> list[dict[str, Any] | None] | None:
    """What weights and checkpoints note of the images that they are trained on: of each source in turn its
    `Rest.record`, or None where nothing was held out by lot; None where that is so of all."""
    members = images.members if isinstance(images, Mix) else [images]
    records = [member.record if isinstance(member, Rest) else None for member in members]
    return records if any(records) else None


def records_by_source(source: str, records: Sequence[dict[str, Any] | None] | None) -> list[tuple[str, dict[str, Any]]]:
    """The parts of `data.source` of which a tenth was held out by lot, each with its entry of a `training_record`."""
    sources = source.split(",") if len(records or []) > 1 else [source]  # one may have a comma in its name
    return [(part, record) for part, record in zip(sources, records or [], strict=False) if record]


@contextmanager
def measuring(trainings: Sequence[Training]) -> Iterator[None]:
    """While the block runs, opening a held-out tenth of these sources is refused where it was trained on
    (`require_untrained`)."""
    token = _trainings.set(trainings)
    try:
        yield
    finally:
        _trainings.reset(token)


def changed_since(training: Training, source: str, record: Mapping[str, Any]) -> str:
    """How a source, of which a tenth is held out by lot, is other than it was in a training: then that one's images are
    among the tenth that is held out now. Empty where it is the same, or another source."""
    if training.source != source or training.record["sha256"] == record["sha256"]:
        return ""
    before, now = training.record["images"], record["images"]
    if before == now:
        return f"{source} holds other images than when {training.run} was trained, by their names or classes"
    return f"{source} held {before:,} images when {training.run} was trained and holds {now:,} now"


def require_untrained(source: str, rest: Rest) -> None:
    """Raises UserError where a RUN that is being measured was trained on other images of this source than the present
    rest of it (`changed_since`)."""
    for training in _trainings.get():
        if changed := changed_since(training, source, rest.record):
            raise UserError(
                f"{changed}, so the tenth that is held out now was mostly trained on; put images that were never "
                "trained on into a val/ in it, name some with --val, or train again."
            )


# ---- training images to choose by ----------------------------------------------------------------------------------


def tenth_of_each_class(
    labels: Int64[Tensor, " n"], seed: int, number: int = 0
) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
    """Indices of the rest and of a seeded tenth of the training images, the same share of every class.

    Tenths of other numbers, from 0, have no image in common; of a class with fewer images than ten the later ones may
    have none. Classes of a single image stay in the rest, so that every class of the tenth could be learned.
    """
    order = torch.from_numpy(permutation(seed, "tenth", 0, len(labels)))
    tenth = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        count = max(round(len(members) / 10), int(len(members) > 1))
        tenth[members[number * count : (number + 1) * count]] = True
    return (~tenth).nonzero()[:, 0], tenth.nonzero()[:, 0]


def tenth_of_rows(count: int, seed: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " t"]]:
    """Indices of the rest and of a seeded tenth of rows without classes, both in random order."""
    order = torch.from_numpy(permutation(seed, "ridge tenth", 0, count))
    tenth = max(1, count // 10)
    return order[tenth:], order[:tenth]


# ---- some of many images -------------------------------------------------------------------------------------------


def draw_rows(count: int, available: int, seed: int) -> Int64[np.ndarray, " m"]:
    """Up to `count` indices of a set: a seeded draw without repetition, sorted."""
    return np.sort(shuffled_rows(count, available, seed))


def shuffled_rows(count: int, available: int, seed: int) -> Int64[np.ndarray, " m"]:
    """The indices of `draw_rows` in the order of the draw."""
    return np.random.default_rng(seed).permutation(available)[:count]


def share_of_each_class(images: ImageSet, count: int, seed: int) -> Subset:
    """A seeded choice of `count` images (0: all) that holds every class in proportion, in the order of the set; where
    the count allows it, one image at least of each."""
    order = permutation(seed, "sweep's choice", 0, len(images))
    if images.labels is not None:
        order = _by_class(order, images.labels)
    count = min(count or len(images), len(images))
    chosen = order[np.linspace(0, len(images) - 1, count).round().astype(np.int64)]
    if images.labels is not None:
        chosen = _with_every_class(chosen, order, images.labels)
    return Subset(images, np.sort(chosen))


def _with_every_class(
    chosen: Int64[np.ndarray, " m"], order: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " m"]:
    """The same choice where every class has an image in it; else the first in `order` of each class that has none takes
    the place of one of the class that has most, while that has more than one."""
    chosen = chosen.copy()
    for label in np.setdiff1d(labels[labels != UNLABELLED], labels[chosen]):
        present, counts = np.unique(labels[chosen], return_counts=True)
        if not len(counts) or counts.max() < 2:
            break
        place = np.flatnonzero(labels[chosen] == present[counts.argmax()])[-1]
        chosen[place] = order[labels[order] == label][0]
    return chosen


def _by_class(order: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The same random order with the images of a class beside each other."""
    return order[np.argsort(labels[order], kind="stable")]
