"""Images that cannot be decoded: each is named once and left out; a source of nothing else is refused."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from iwm.data.decode import BrokenImage, NothingReadable
from iwm.data.image_sets import ImageSet

log = logging.getLogger("iwm")

_named: set[str] = set()
"""Broken images that have been named: several passes over a source name each of them once."""


def readable(images: ImageSet, loaded: Sequence[Tensor | BrokenImage]) -> tuple[list[Tensor], Int64[np.ndarray, " n"]]:
    """`without_broken`. Raises UserError when there is nothing left."""
    whole, kept = without_broken(loaded)
    if not whole:
        raise NothingReadable(none_left(images, loaded))
    return whole, kept


def without_broken(loaded: Sequence[Tensor | BrokenImage]) -> tuple[list[Tensor], Int64[np.ndarray, " n"]]:
    """What could be decoded and where it stood; the rest is named."""
    kept = np.array([index for index, image in enumerate(loaded) if isinstance(image, Tensor)], dtype=np.int64)
    for broken in loaded:
        if isinstance(broken, BrokenImage):
            name_broken(broken)
    return [image for image in loaded if isinstance(image, Tensor)], kept


def name_broken(broken: BrokenImage) -> None:
    """Warn of a broken image unless that was done before."""
    if broken.name not in _named:
        _named.add(broken.name)
        log.warning("Skipped a broken image: %s", broken)


def none_left(images: ImageSet, loaded: Sequence[Tensor | BrokenImage]) -> str:
    """The sentence for a source of which nothing can be decoded, with one of the reasons."""
    broken = next((one for one in loaded if isinstance(one, BrokenImage)), None)
    example = broken or images.path(0)
    return f"Not one of the {len(images)} images of '{images.name}' can be decoded; check its files, e.g. {example}."
