"""Terms that keep the features spread (VICReg, Bardes et al. 2022, equations 1 and 3), and how far colours spread them.

At small scale the latent loss alone lets the features fall into a few directions (average colour first), which an EMA
teacher then hands on. Two terms on the student's context tokens keep them spread:

    variance = mean_j max(0, 1 - sqrt(Var(z_j) + e)),   covariance = sum_{i != j} Cov(z)_ij^2 / d
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from iwm.runtime import distributed
from iwm.runtime.algebra import double


def variance_covariance(
    tokens: Float[Tensor, "b c d"], positions: Int64[Tensor, "b c"], count: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """VICReg's variance and covariance terms over images, in float32.

    Every token is centred by the mean of its position (`positions` of a grid of `count`) first, over the micro-batch of
    all ranks: otherwise features that say nothing but the position would satisfy both terms.
    """
    with torch.autocast(tokens.device.type, enabled=False):  # autocast would multiply in bfloat16 all the same
        tokens, where = tokens.float(), positions.unsqueeze(2)
        # No position is twice in an image: spread out and summed over the images, which on a GPU is the same every time
        # and waits for nobody, as adding by index (atomically) and counting (asks for the largest) are not.
        spread_out = tokens.new_zeros(len(tokens), count, tokens.shape[2]).scatter(1, where.expand_as(tokens), tokens)
        counts = tokens.new_zeros(len(tokens), count, 1).scatter(1, where, 1.0).sum(0)
        sums, counts = distributed.all_reduce_sum(spread_out.sum(0)), distributed.all_reduce_sum(counts)
        centred = (tokens - (sums / counts.clamp_min(1))[positions]).flatten(0, 1)
        tokens_in_all = len(centred) * distributed.size()
        covariance = distributed.all_reduce_sum(centred.T @ centred) / max(1, tokens_in_all - 1)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        others = covariance.square().sum() - covariance.diagonal().square().sum()
        return F.relu(1 - spread).mean(), others / centred.shape[1]


def photometric_share(source: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> float:
    """The measured axis from invariant to equivariant: how far a change of colours moves a token, over how far the mean
    of its position is off.

        E |t(source) - t(target)|^2 / E |t(target) - position mean|^2      at the same patch

    0 is invariant; at 1 a change of colours moves a token as far as knowing the position only is off; two unrelated
    images have 2.
    """
    source, target, count = double(source), double(target), len(target)
    spread = (target - target.mean(dim=0)).square().mean() * count / max(1, count - 1)
    return float((source - target).square().mean() / spread.clamp_min(1e-12))
