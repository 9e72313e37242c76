"""Small numeric tools without state: ranks, distances, chance."""

import torch
from jaxtyping import Float
from torch import Tensor


def chance(bank: int) -> float:
    """Expected reciprocal rank of a random order of `bank` entries: the harmonic number over the count."""
    return float(sum(1 / rank for rank in range(1, bank + 1)) / bank)


def ranks(distances: Float[Tensor, "b b"]) -> Float[Tensor, " b"]:
    """Rank (from 1) of entry j in row j, ties counted half. Non-finite distances rank last."""
    own = distances.diagonal()[:, None]
    others = ~torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    nearer = (distances < own) | ~torch.isfinite(own)
    tied = (distances == own) & others
    return 1 + (nearer & others).sum(1) + 0.5 * tied.sum(1)


def squared_distances(a: Float[Tensor, "p n d"], b: Float[Tensor, "q n d"]) -> Float[Tensor, "p q"]:
    """|a_i - b_j|^2 over all tokens, centred first so that the subtraction does not cancel."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    centre = b.mean(0)
    a, b = a - centre, b - centre
    distances = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    # Entries that are equal up to rounding are ties, or a collapsed space would look like a random one.
    scale = distances.abs().amax().clamp_min(1e-12)
    return (distances / scale * 1e9).round() * (scale / 1e9)
