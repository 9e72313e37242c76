"""The linear classifier: multinomial logistic regression on standardised features.

    min_{W, b} mean_i CE(W z_i + b, y_i) + l2/2 |W|^2,     z standardised by the training images, unless told not to

Full-batch L-BFGS in whitened coordinates, the gradient by hand: 50,000 features of width 192 in seconds on one core.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from iwm.data.splits import tenth_of_each_class, tenth_of_rows
from iwm.evaluation.grids import best_of, grid_ends, untried
from iwm.runtime.algebra import best_strength, ridge, search, standardisation
from iwm.verbs.probe import L2


def full_precision() -> torch.autocast:
    """For functions of features, which lie on the host: never in lower precision, whatever the caller's autocast. A new
    one each time, for nested uses of one would not restore the caller's."""
    return torch.autocast("cpu", enabled=False)


@dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    at_grid_end: dict[str, str] = field(default_factory=dict)
    """Of a strength that was chosen: whether it is an end of its grid (`iwm.evaluation.grids`)."""

    @full_precision()
    def logits(self, values: Float[Tensor, "m d"]) -> Float[Tensor, "m c"]:
        return F.linear((values.float() - self.mean) / self.std, self.weight, self.bias)


@dataclass(frozen=True)
class Regression:
    """Multinomial logistic regression, mean cross-entropy + l2/2 |W|^2 (scikit-learn's C = 1 / (l2 n)), the bias not
    penalised: its images and labels, with all that does not depend on its strength, computed once."""

    inputs: Float[Tensor, "n d"]
    """Standardised, unless told not to."""
    labels: Int64[Tensor, " n"]
    classes: int
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    """Of up to 8,192 images. In float64: of fewer images than features it is singular, and rounded to float32 not even
    positive."""

    @classmethod
    @full_precision()
    def of(
        cls, values: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int, standardise: bool = True
    ) -> "Regression":
        """`standardise` is what a BatchNorm without affine does once its statistics are those of the training images;
        False leaves the features at their own scale."""
        values = values.float()
        mean, std = standardisation(values)
        if not standardise:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        inputs = (values - mean).div_(std)
        sample = inputs[:: -(-len(inputs) // 8192)].double()
        return cls(inputs, labels, classes, mean, std, sample.T @ sample / len(sample))

    @full_precision()
    def path(self, grid: Sequence[float], iterations: int = 100, start: Linear | None = None) -> list[Linear]:
        """The minimum for every strength of the grid in order; each solution starts the next. `start` is one on these
        very images at another strength, to start the first."""
        weight = self.inputs.new_zeros(self.classes, self.inputs.shape[1])
        bias = self.inputs.new_zeros(self.classes)
        if start is not None:
            weight, bias = start.weight, start.bias
        path = []
        for l2 in grid:
            weight, bias = self._minimise(l2, weight, bias, iterations)
            path.append(Linear(self.mean, self.std, weight, bias))
        return path

    def _minimise(
        self, l2: float, weight: Float[Tensor, "c d"], bias: Float[Tensor, " c"], iterations: int
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        # Solved for V = W L, where L L' = Cov/c + l2 I is the curvature expected of evenly spread predictions: a few
        # dozen iterations then do for what takes hundreds on correlated features. The minimum is the same.
        curvature = self.covariance / len(weight)
        curvature.diagonal().add_(l2 + 1e-6)
        factor = torch.linalg.cholesky(curvature).float()
        factor_t = factor.T.contiguous()
        unknown = torch.cat([weight @ factor, bias[:, None]], dim=1).requires_grad_(True)
        inputs, labels = self.inputs, self.labels
        rows = torch.arange(len(inputs), device=inputs.device)
        solver = torch.optim.LBFGS(
            [unknown],
            max_iter=iterations,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def weight_of(unknown: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor_t, unknown[:, :-1].T, upper=True).T.contiguous()

        @torch.no_grad()
        def closure() -> Tensor:
            # The gradient by hand, mean_i (softmax_i - onehot_i) z_i: no graph, half the memory and time of autograd.
            weight, bias = weight_of(unknown), unknown[:, -1]
            log_p = F.linear(inputs, weight, bias).log_softmax(dim=1)
            loss = -log_p[rows, labels].mean() + l2 / 2 * weight.square().sum()
            residual = log_p.exp_()
            residual[rows, labels] -= 1
            slope = residual.T @ inputs / len(inputs) + l2 * weight
            whitened = torch.linalg.solve_triangular(factor, slope.T, upper=False).T
            unknown.grad = torch.cat([whitened, residual.mean(dim=0)[:, None]], dim=1)
            return loss

        solver.step(closure)  # pyright: ignore[reportArgumentType]
        unknown = unknown.detach()
        return weight_of(unknown), unknown[:, -1]


MOST_TENTHS, ENOUGH = 5, 2000
"""Tenths of the training images that choose a strength: up to five, as many as hold this many images together."""


def tenths_of(images: int) -> int:
    """How many disjoint tenths of so many training images choose a strength: the accuracy on one tenth of a small set
    is too noisy to choose by; five of 4,000 images cost as much as one of 20,000."""
    return max(1, min(MOST_TENTHS, math.ceil(10 * ENOUGH / max(1, images))))


def choose_l2(
    values: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    grid: Sequence[float],
    seed: int,
    standardise: bool = True,
    *,
    beyond: bool = False,
    copies: int = 1,
) -> list[dict[str, Any]]:
    """Accuracy on seeded tenths (`tenths_of`) of a fit to the rest of each, for each strength, strongest first; where
    `beyond`, then for further ones as long as the best is an end of them (`iwm.runtime.algebra.search`).

    `values` may be several copies of the images, one after the other: no copy of a tenth's images is learned from.
    Where no class has two images there is no tenth, and nothing is tried.
    """
    images = len(labels) // copies
    if not len(tenth_of_each_class(labels[:images].cpu(), seed)[1]):
        return []
    parts: list[tuple[Int64[Tensor, " m"], Regression, dict[float, Linear]]] = []
    for number in range(tenths_of(images)):
        rows = tenth_of_each_class(labels[:images].cpu(), seed, number)
        rest, tenth = (_of_copies(each, images, copies).to(values.device) for each in rows)
        parts.append((tenth, Regression.of(values[rest], labels[rest], classes, standardise), {}))

    def scores(strengths: Sequence[float]) -> list[float]:
        right = []
        for tenth, regression, own in parts:
            nearest = min(own, key=lambda l2: abs(math.log(l2 / strengths[0])), default=None)
            path = regression.path(strengths, start=None if nearest is None else own[nearest])
            own.update(zip(strengths, path, strict=True))
            right.append([solution.logits(values[tenth]).argmax(dim=1) == labels[tenth] for solution in path])
        return [float(torch.cat(each).double().mean()) for each in zip(*right, strict=True)]

    return [{"l2": l2, "tenth_top1": top1} for l2, top1 in search(grid, scores, beyond).items()]


def _of_copies(rows: Int64[Tensor, " r"], images: int, copies: int) -> Int64[Tensor, " m"]:
    """The rows of these images among several copies of all, one after the other."""
    return torch.cat([rows + copy * images for copy in range(copies)])


def chosen_l2(tried: Sequence[Mapping[str, Any]], grid: Sequence[float] = L2) -> float:
    """The best of the strengths that `choose_l2` tried; the middle of its grid where it could try none."""
    return best_of(tried)["l2"] if tried else untried([{"l2": l2} for l2 in grid])["l2"]


def fit_chosen(
    values: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    tried: Sequence[Mapping[str, Any]],
    standardise: bool = True,
    grid: Sequence[float] = L2,
) -> Linear:
    """The fit to all images with the best of the strengths that `choose_l2` tried (`chosen_l2`), by the way on which it
    was chosen: from the strongest down, each solution starting the next. At weak penalties a fit from nothing would
    stop short of where those of the choice have come."""
    best = chosen_l2(tried, grid)
    strengths = sorted({best, *(row["l2"] for row in tried if row["l2"] >= best)}, reverse=True)
    solution = Regression.of(values, labels, classes, standardise).path(strengths)[-1]
    return replace(solution, at_grid_end=grid_ends({"l2": best}, tried))


# ---- regression ----------------------------------------------------------------------------------------------------

RIDGE_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths of ridge regression."""


def fit_ridge(values: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], l2: float) -> Linear:
    """min mean_i |W z_i + b - y_i|^2 + l2 |W|^2, z standardised, b not penalised (scikit-learn's alpha = l2 n)."""
    values, wanted = values.double(), wanted.double()
    mean, std = standardisation(values)
    weight, bias = ridge((values - mean) / std, wanted, l2)
    return Linear(mean.float(), std.float(), weight.T.float(), bias.float())


def choose_ridge(
    values: Float[Tensor, "n d"], wanted: Float[Tensor, "n k"], seed: int, image: Int64[Tensor, " n"] | None = None
) -> Linear:
    """Ridge regression whose strength is chosen by the squared error on a seeded tenth of the images, from RIDGE_GRID
    and beyond (`iwm.runtime.algebra.search`).

    `image` says which of 0..m - 1 images a row is of, where images have several: all rows of one are on one side. Of a
    single image nothing can be held out: the middle of the grid is taken.
    """
    image = torch.arange(len(values)) if image is None else image
    count = int(image.max()) + 1
    if count == 1:
        return fit_ridge(values, wanted, untried([{"l2": l2} for l2 in RIDGE_GRID])["l2"])
    sides = tenth_of_rows(count, seed)
    rest, tenth = (torch.isin(image, side).nonzero()[:, 0].to(values.device) for side in sides)

    def error(l2: float) -> float:
        return float((fit_ridge(values[rest], wanted[rest], l2).logits(values[tenth]) - wanted[tenth]).square().mean())

    tried = search(RIDGE_GRID, lambda strengths: [-error(l2) for l2 in strengths])
    best = best_strength(tried)
    ends = grid_ends({"l2": best}, [{"l2": l2} for l2 in tried])
    return replace(fit_ridge(values, wanted, best), at_grid_end=ends)
