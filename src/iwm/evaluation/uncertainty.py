"""Standard errors of what is measured, and how two numbers stand to each other."""

import math

from jaxtyping import Float
from torch import Tensor


def standard_error(per_image: Float[Tensor, " n"]) -> float:
    """Of the mean over images; of a single one it is not known (NaN)."""
    return float(per_image.std() / len(per_image) ** 0.5) if len(per_image) > 1 else math.nan


def standing(value: float, control: float, error: float) -> str:
    """'above', 'level with' (within two standard errors of the difference) or 'BELOW'."""
    if abs(value - control) <= 2 * error or value == control:
        return "level with"
    return "above" if value > control else "BELOW"


def accuracy_error(top1: float, count: float) -> float:
    """Standard error of an accuracy over `count` images, those of the binomial distribution."""
    return math.sqrt(top1 * (1 - top1) / count)


def difference_error(a: float, b: float, count: float) -> float:
    """Standard error of the difference of two accuracies over `count` images each."""
    return math.hypot(accuracy_error(a, count), accuracy_error(b, count))
