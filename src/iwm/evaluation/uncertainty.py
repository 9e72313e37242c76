"""Every standard error and interval of what is measured, and how two numbers stand to each other."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

# ---- standard errors -----------------------------------------------------------------------------------------------


def standard_error(per_image: Float[Tensor, " n"]) -> float:
    """Of the mean over images; of a single one it is not known (NaN)."""
    return float(per_image.std() / len(per_image) ** 0.5) if len(per_image) > 1 else math.nan


def seed_error(per_seed: Sequence[float]) -> float:
    """Of the mean over two seeds or more: the same formula for a few plain numbers."""
    count = len(per_seed)
    mean = sum(per_seed) / count
    return math.sqrt(sum((value - mean) ** 2 for value in per_seed) / (count - 1) / count)


def accuracy_error(top1: float, count: float) -> float:
    """Of an accuracy over `count` images, that of the binomial distribution."""
    return math.sqrt(top1 * (1 - top1) / count)


def accuracy_errors(numbers: Mapping[str, Any], count: float) -> dict[str, float]:
    """The error of every accuracy "top1" or "..._top1" among a result's numbers, each over `count` images, under
    "..._standard_error"; balanced_top1, a mean over classes, has none."""
    keys = [key for key in numbers if key == "top1" or (key.endswith("_top1") and key != "balanced_top1")]
    return {f"{key}_standard_error": accuracy_error(numbers[key], count) for key in keys}


def bootstrap_error(
    statistic: Callable[[Float[np.ndarray, "b n"]], Float[np.ndarray, " b"]], count: int, seed: int, draws: int = 200
) -> float:
    """Of a statistic that is no mean over its `count` images: they are drawn anew with replacement, `draws` times; of
    a single image it is not known (NaN).

    `statistic` is given how often each image counts, a row a draw.
    """
    if count < 2:
        return math.nan
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return float(statistic(weights.astype(np.float64)).std())


# ---- several numbers -----------------------------------------------------------------------------------------------


def combined_error(*errors: float) -> float:
    """Of a sum or a difference of independent numbers, from the error of each."""
    return math.hypot(*errors)


def average_error(errors: Sequence[float]) -> float:
    """Of the average of independent numbers, from the error of each; 0 of none."""
    return math.sqrt(sum(error**2 for error in errors)) / max(1, len(errors))


def difference_error(a: float, b: float, count: float) -> float:
    """Of the difference of two accuracies over `count` images each, as judgements take it: few images of which all
    or none are right are not certain, so each accuracy counts one more image right and one wrong (Laplace's rule), and
    the variance is over count - 1. Of a single image infinite."""
    if count <= 1:
        return math.inf
    smooth = [(top1 * count + 1) / (count + 2) for top1 in (a, b)]
    return combined_error(*(accuracy_error(top1, count - 1) for top1 in smooth))


def correlation_interval(r: float, count: int) -> tuple[float, float]:
    """95 % interval of Pearson's r over `count` points by Fisher's z: tanh(artanh r -+ 1.96 / sqrt(count - 3))."""
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), 1.959964 / math.sqrt(count - 3)
    return math.tanh(z - half), math.tanh(z + half)


T_QUANTILES = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646, 9: 2.3060, 10: 2.2622}
"""The 97.5 % quantile of Student's t with n - 1 degrees of freedom, by n."""


def t_quantile(count: int) -> float:
    """How many standard errors of a mean over `count` seeds, 2 or more, the 95 % interval reaches to either side.

    Above 10 by Fisher's expansion in 1 / degrees of freedom, right to .001.
    """
    if count in T_QUANTILES:
        return T_QUANTILES[count]
    z, v = 1.959964, count - 1
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


ROUNDING = 1e-6
"""Numbers that are no further apart are the same: older results are means in single precision."""


def standing(value: float, control: float, error: float, seeds: int = 0) -> str:
    """'above', 'level with' (the difference is within its 95 % interval of 0) or 'BELOW'.

    The interval reaches two standard errors, for errors over images; as far as `t_quantile` says where `error` is of a
    mean over that many seeds. What differs by rounding alone is level, however small the error.
    """
    if abs(value - control) <= max(ROUNDING, (t_quantile(seeds) if seeds else 2) * error):
        return "level with"
    return "above" if value > control else "BELOW"


def majority_top1(labels: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " m"]) -> float:
    """Share of the test images that are of the class most frequent among the training images (of equals the first)."""
    classes, counts = np.unique(labels, return_counts=True)
    return float((truth == classes[counts.argmax()]).mean())


def is_unbalanced(facts: Mapping[str, Any]) -> bool:
    """Whether the most frequent class alone exceeds chance by more than half; False for older results without it."""
    return facts.get("majority_top1", 0.0) > 1.5 * facts["chance"]
