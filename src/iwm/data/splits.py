"""All hold-outs and seeded choices of images: which are learned from, which are measured on.

A source without val/ of its own leaves a tenth of its images for measuring (`hold_out_images`). Of the training images
another tenth is left to choose a learning rate or a strength by (`tenth_of_each_class`, `tenth_of_rows`). Every choice
is a pure function of its seed.
"""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from iwm.data.image_sets import UNLABELLED, ImageSet, Subset
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

# ---- images to measure on ------------------------------------------------------------------------------------------


def hold_out_images(images: ImageSet, seed: int, by_class: bool = True) -> tuple[ImageSet, ImageSet]:
    """A set without a seeded tenth, and that tenth; `by_class` draws it evenly from the classes, where there are some.

    Raises UserError when the set is a single image.
    """
    rest, tenth = hold_out_rows(len(images), images.name, seed, images.labels if by_class else None)
    return Subset(images, rest, "train"), Subset(images, tenth, "val")


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
