"""Standard errors of what is measured, and how two numbers stand to each other."""

import math

from jaxtyping import Float
from torch import Tensor


def standard_error(per_image: Float[Tensor, " n"]) -> float:
    """Of the mean over images; of a single one it is not known (NaN)."""
    return float(per_image.std() / len(per_image) ** 0.5) if len(per_image) > 1 else math.nan
