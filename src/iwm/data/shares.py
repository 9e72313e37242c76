"""Whole sets of images for an evaluation: every rank decodes its share, and all of them get every image in order.

The functions are those of `loader`, which do the same for one process, and read the same sets alike: what is broken is
left out wherever it lies, and a set is an error only where no rank can read an image of its share.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor, from_numpy

from iwm.data import loader
from iwm.data.decode import NothingReadable
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.splits import draw_rows
from iwm.runtime import distributed, sharing

Rows = Int64[np.ndarray, " n"]


def load_all(images: ImageSet, size: int) -> tuple[UInt8[Tensor, "n 3 {size} {size}"], Rows]:
    """`loader.load_all`, shared."""

    def load(images: ImageSet, rows: Rows) -> dict[str, Tensor]:
        pixels, kept = loader.load_all(images, size)
        return {"pixels": pixels, "kept": from_numpy(rows[kept])}

    parts = _shared(images, load)
    return parts["pixels"], parts["kept"].numpy()


def load_draw(images: ImageSet, count: int, size: int, seed: int) -> tuple[UInt8[Tensor, "n 3 {size} {size}"], Rows]:
    """A seeded draw (`draw_rows`) of up to `count` images, as `load_all` reads them, and their indices in the set."""
    rows = draw_rows(count, len(images), seed)
    pixels, kept = load_all(Subset(images, rows), size)
    return pixels, rows[kept]


def load_with_crops(
    images: ImageSet, size: int, area: tuple[float, float], seed: int, numbers: Int64[np.ndarray, " m"]
) -> tuple[UInt8[Tensor, "n 3 {size} {size}"], UInt8[Tensor, "n 3 {size} {size}"], Rows]:
    """`loader.load_with_crops`, shared."""

    def load(images: ImageSet, rows: Rows) -> dict[str, Tensor]:
        whole, crops, kept = loader.load_with_crops(images, size, area, seed, numbers[rows])
        return {"whole": whole, "crops": crops, "kept": from_numpy(rows[kept])}

    parts = _shared(images, load)
    return parts["whole"], parts["crops"], parts["kept"].numpy()


def load_chunks(images: ImageSet, size: int, at_once: int) -> Iterator[tuple[UInt8[Tensor, "n 3 {size} {size}"], Rows]]:
    """`loader.load_chunks` of this rank's share alone, with the indices in the whole set. A share without an image that
    can be decoded gives none; nothing is an error unless one process does all."""
    if distributed.size() == 1:
        yield from loader.load_chunks(images, size, at_once)
        return
    rows = _rows_of_share(images)
    if not len(rows):
        return
    try:
        for pixels, kept in loader.load_chunks(Subset(images, rows), size, at_once):
            yield pixels, rows[kept]
    except NothingReadable:
        return


def nothing_readable(images: ImageSet) -> NothingReadable:
    """The error where no rank could decode an image."""
    return NothingReadable(f"Not one of the {len(images)} images of '{images.name}' can be decoded; check its files.")


def _rows_of_share(images: ImageSet) -> Rows:
    share = sharing.share_of(len(images))
    return np.arange(share.start, share.stop)


def _shared(images: ImageSet, load: Callable[[ImageSet, Rows], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`load` of this rank's rows of a set, gathered. Raises UserError when no rank can decode an image of its share."""
    if distributed.size() == 1:
        return load(images, np.arange(len(images)))
    rows, part, failure = _rows_of_share(images), {}, None
    try:
        with distributed.share():
            part = load(Subset(images, rows), rows) if len(rows) else {}
    except NothingReadable as error:
        failure = error
    parts = sharing.gathered_each(part)
    if not parts:
        raise failure or nothing_readable(images)
    return parts
