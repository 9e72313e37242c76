"""Which images are held out, and which are drawn: every split and every seeded draw of images."""

import numpy as np
from jaxtyping import Int64

from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation


def held_out(
    count: int, name: str, seed: int, labels: Int64[np.ndarray, " n"] | None = None
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " t"]]:
    """The other nine tenths and a seeded tenth of a set's indices, the tenth drawn evenly from all classes.

    The only image of a class stays with the rest. Raises UserError when the set is a single image.
    """
    if count < 2:
        raise UserError(f"'{name}' holds a single image, too few to hold some out; add images.")
    order = permutation(seed, "held out", 0, count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        several = order[np.bincount(labels)[labels[order]] > 1]
        order = several if len(several) else order
    chosen = np.zeros(count, dtype=bool)
    chosen[order[4::10] if len(order) >= 10 else order[:1]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def draw_rows(count: int, available: int, seed: int) -> np.ndarray:
    """Which images of a split are asked: a seeded draw without repetition, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(available)[: min(count, available)])
