"""Pixels of patches as targets (MAE, generative world models)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def patches_of(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b n d"]:
    """The pixels of every patch of `size` x `size`, d = 3 size^2 numbers (row, column, colour; MAE's order), patches in
    row-major order. Sides must be multiples of `size`."""
    return (
        F.pixel_unshuffle(images, size).unflatten(1, (3, size * size)).permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2)
    )
