"""Small numeric tools: joined parts, ranks, distances, PSNR, the cosine schedule, standardisation, ridge regression."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def double(values: Tensor) -> Tensor:
    """The values in float64; on the CPU where their device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other; a single one as it is, which `torch.cat` would copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
    a, b = double(a.flatten(1)), double(b.flatten(1))
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


def psnr(images: Float[Tensor, "n 3 h w"], truths: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of every image in dB, -10 log10(MSE) over its pixels and colours, values in [0, 1].

    The MSE counts at least as the rounding to 8 bits (1/12 of a step squared): two equal images have 58.9 dB.
    """
    errors = (images.double() - truths.double()).square().mean(dim=(1, 2, 3))
    return -10 * errors.clamp_min(1 / (12 * 255**2)).log10()


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
    return mean, _usable(deviation)


def _usable(deviation: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The deviations, 1 instead of next to nothing."""
    return torch.where(deviation > 1e-6 * deviation.max().clamp_min(1e-12), deviation, 1.0)


def ridge(
    inputs: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], l2: float
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Weight and bias that minimise mean_i |z_i W + b - y_i|^2 + l2 |W|^2 in closed form (scikit-learn: alpha = l2 n).

    The inputs z must have mean 0; the bias, which is not penalised, is then the mean of the wanted values y.
    """
    middle = wanted.mean(dim=0)
    return _solve(inputs.T @ inputs / len(inputs), inputs.T @ (wanted - middle) / len(inputs), l2), middle


def left_out(inputs: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], l2: float) -> Float[Tensor, "n k"]:
    """For every row what `ridge` predicts when it is fitted to all the others, with a penalty l2 n / (n - 1).

    No fit is repeated: the residual of row i is that of the fit to all over 1 - h_i, where h_i = 1/n + z_i^T (Z^T Z + n
    l2 I)^-1 z_i is the row's leverage (Allen 1974, PRESS). The inputs must have mean 0 and stay standardised as they
    are.
    """
    middle = wanted.mean(dim=0)
    solved = _solve(inputs.T @ inputs / len(inputs), inputs.T / len(inputs), l2)  # times wanted: the weight of `ridge`
    leverage = 1 / len(inputs) + (inputs * solved.T).sum(1)
    residual = wanted - middle - inputs @ (solved @ (wanted - middle))
    return wanted - residual / (1 - leverage).clamp_min(1e-12)[:, None]


def _solve(curvature: Float[Tensor, "d d"], slope: Float[Tensor, "d k"], l2: float) -> Float[Tensor, "d k"]:
    """The normal equations of ridge regression; writes into `curvature`."""
    curvature.diagonal().add_(l2)
    return torch.linalg.solve(curvature, slope)


# ---- the strength of a penalty --------------------------------------------------------------------------------------

LEAST, MOST = 1e-8, 1e2
"""No search for a strength goes further."""


def search(
    grid: Sequence[float], scores: Callable[[Sequence[float]], Sequence[float]], beyond: bool = True
) -> dict[float, float]:
    """{strength: score}, the higher the better, in the order in which they were tried; of equals the first is best.

    The grid comes first, strongest first. Then, where `beyond`, one more at a time, ten times as weak or as strong, as
    long as the best is the weakest or the strongest of all, from LEAST to MOST. `scores` is given one or several.
    """
    strongest_first = sorted(grid, reverse=True)
    tried = dict(zip(strongest_first, scores(strongest_first), strict=True))
    while beyond and (further := _beyond(tried)) is not None:
        tried[further] = scores([further])[0]
    return tried


def best_strength(tried: Mapping[float, float]) -> float:
    """The strength with the highest score that `search` found; of equals the first."""
    return max(tried, key=lambda strength: tried[strength])


def _beyond(tried: Mapping[float, float]) -> float | None:
    """The strength next to the best where that is an end, and within the limits."""
    best = best_strength(tried)
    ends = {min(tried): best / 10, max(tried): best * 10}
    further = float(f"{ends[best]:.6g}") if best in ends else None  # 1e-06, not 1.0000000000000002e-06
    return further if further is not None and LEAST <= further <= MOST else None


class RidgeSums:
    """Ridge regression whose rows come batch by batch: the normal equations, summed in float64.

    It keeps d (d + k) numbers, however many rows there are. The inputs are standardised as by `standardisation`.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.first, self.wanted = zeros(inputs), zeros(outputs)
        self.second, self.product = zeros(inputs, inputs), zeros(inputs, outputs)
        self.wanted_squares = zeros()

    def add(self, inputs: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"]) -> None:
        """Take in some rows."""
        inputs, wanted = inputs.double(), wanted.double()
        self.count += len(inputs)
        self.first += inputs.sum(0)
        self.wanted += wanted.sum(0)
        self.second += inputs.T @ inputs
        self.product += inputs.T @ wanted
        self.wanted_squares += wanted.square().sum()

    def solve(self, l2: float) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
        """Weight and bias, for inputs as they came, of `ridge` on the standardised inputs."""
        mean, middle = self.first / self.count, self.wanted / self.count
        covariance = self.second / self.count - mean[:, None] * mean
        deviation = _usable(covariance.diagonal().clamp_min(0).sqrt())
        curvature = covariance / (deviation[:, None] * deviation)
        slope = (self.product / self.count - mean[:, None] * middle) / deviation[:, None]
        weight = _solve(curvature, slope, l2) / deviation[:, None]
        return weight, middle - mean @ weight

    def error(self, weight: Float[Tensor, "d k"], bias: Float[Tensor, " k"]) -> float:
        """Mean squared error of a weight and a bias on the rows, over all outputs."""
        weight, bias = weight.double(), bias.double()
        squares = (weight * (self.second @ weight)).sum() + self.count * bias.square().sum()
        squares += 2 * bias @ (self.first @ weight) - 2 * (weight * self.product).sum() - 2 * bias @ self.wanted
        return float(squares + self.wanted_squares) / (self.count * len(bias))

    def choose(self, held: "RidgeSums", grid: Sequence[float]) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
        """The solution at the strength with the least error on the rows that are held, of the grid and beyond
        (`search`)."""
        tried = search(grid, lambda strengths: [-held.error(*self.solve(l2)) for l2 in strengths])
        return self.solve(best_strength(tried))
