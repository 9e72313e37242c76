"""Which images of a task a step shows: one endless row of shuffled epochs, cut into batches.

Two trainings that cut the same row into batches of different sizes see the same images in the same order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from iwm.evaluation.tasks.fitting import Samples
from iwm.runtime import sharing
from iwm.runtime.randomness import permutation

Rows = Int64[Tensor, " n"]
ORDERS = 16
"""Orders of epochs that are remembered: the latest and the one before, of each of eight tasks."""


def stream(samples: Samples, rows: Rows, seed: int, batch: int, step: int) -> tuple[Tensor, Int64[Tensor, " b"]]:
    """Inputs and labels of one step: the `step`-th stretch of `batch` images of the endless row of shuffled epochs; of
    several ranks this one's of them.

    Two readers that differ in `batch` see the same images in the same order. Raises UserError for more ranks than that.
    """
    places = step * batch + sharing.rows_of_batch(batch)
    epochs, within = places // len(rows), places % len(rows)
    parts = []
    for epoch in np.unique(epochs):
        stretch = rows.numpy()[_order(seed, int(epoch), len(rows))[within[epochs == epoch]]]
        parts.append(samples.batch(stretch, seed, int(epoch)))
    inputs, labels = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(labels)


@lru_cache(maxsize=ORDERS)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """An epoch's order, drawn once for all its steps."""
    return permutation(seed, "classifier order", epoch, count)


def steps_of(counts: Sequence[int], epochs: int, batch: int) -> int:
    """Steps in which `epochs` times all images are shown, `batch` of each task at once; a multiple of the number of
    tasks, so that it can be divided between the twins."""
    tasks = len(counts)
    return tasks * max(1, round(epochs * sum(counts) / (batch * tasks) / tasks))
