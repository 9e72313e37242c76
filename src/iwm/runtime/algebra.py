"""Small numeric tools without state: ranks, distances, the cosine schedule, standardisation, ridge regression."""

import math

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


def cosine(start: float, end: float, angle: float) -> float:
    """Half a cosine wave: `start` at angle 0, `end` at angle pi, steepest in between (cosine annealing).

    It takes the angle, pi times the progress, because schedules round their progress differently and a run must repeat
    bit for bit.
    """
    return end + (start - end) * 0.5 * (1 + math.cos(angle))


def standardisation(
    values: Float[Tensor, "n d"], *, correction: int = 0, floor: float | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean of every feature, and the deviation it is divided by to have unit variance.

    A feature that hardly varies keeps its scale: dividing by next to nothing would only amplify rounding. It does so
    below 1e-6 of the largest deviation; where `floor` is given, all are divided by at least that instead.
    """
    mean, deviation = values.mean(dim=0), values.std(dim=0, correction=correction)
    if floor is not None:
        return mean, deviation.clamp_min(floor)
    return mean, torch.where(deviation > 1e-6 * deviation.max().clamp_min(1e-12), deviation, 1.0)


def ridge(
    inputs: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], l2: float
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Weight and bias that minimise mean_i |z_i W + b - y_i|^2 + l2 |W|^2 in closed form (scikit-learn: alpha = l2 n).

    The inputs z must have mean 0; the bias, which is not penalised, is then the mean of the wanted values y.
    """
    middle = wanted.mean(dim=0)
    curvature = inputs.T @ inputs / len(inputs)
    curvature.diagonal().add_(l2)
    return torch.linalg.solve(curvature, inputs.T @ (wanted - middle) / len(inputs)), middle
