"""Invariance of the last block, beside a prediction of an earlier one: the dial from equivariant to invariant.

    z = g(mean of the last block's tokens of the source),   z' = g(the same of the target, at the same patches)
    term = mean_j (z_j - z'_j)^2 + (v(z) + v(z')) / 2 + (c(z) + c(z')) / 25

This is VICReg (Bardes, Ponce and LeCun 2022, equation 6, at its weights 25, 25 and 1) over 25, with the means over
channels and views of the published code; v and c are its variance and covariance terms (`spread`). Source and target
are photometric views of one crop, so that the term asks for nothing but photometric invariance. The predictor reads and
predicts block `encoder.layer`; taking the two demands at different depths follows EquiMod (Devillers and Lefort 2023)
and SER (2603.06693), which take equivariance at an intermediate layer.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iwm.config import Config
from iwm.model.objectives.projector import mlp
from iwm.model.objectives.spread import variance_covariance

PROJECTOR = "invariance"
"""The projector's name in a model. Only training uses it."""
EXPANSION = 4
"""Hidden width of the projector g over the encoder's."""
COVARIANCE = 1 / 25
"""VICReg's weight of the covariance term over those of the other two."""


def widths_of(settings: Config) -> list[int]:
    """Input, hidden and output width of the projector."""
    width = settings.encoder.width
    return [width, EXPANSION * width, settings.objective.projector_dim]


def projector_of(settings: Config) -> nn.Sequential:
    """The projector g: Linear, BatchNorm, ReLU, Linear."""
    return mlp(widths_of(settings), last_norm=False)


def vicreg(one: Float[Tensor, "b e"], other: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """The term, in float32; variances and covariances are of the micro-batch over all ranks."""
    one, other = one.float(), other.float()
    nowhere = torch.zeros(len(one), 1, dtype=torch.int64, device=one.device)
    spreads = [variance_covariance(each.unsqueeze(1), nowhere, 1) for each in (one, other)]
    variance, covariance = (sum(terms, start=one.new_zeros(())) for terms in zip(*spreads, strict=True))
    return F.mse_loss(one, other) + variance / 2 + COVARIANCE * covariance


def parameter_count(settings: Config) -> int:
    """Parameters of the projector."""
    width, hidden, output = widths_of(settings)
    return width * hidden + 2 * hidden + (hidden + 1) * output


def flops(settings: Config) -> float:
    """A forward pass of the projector for one view."""
    width, hidden, output = widths_of(settings)
    return 2.0 * hidden * (width + output)
