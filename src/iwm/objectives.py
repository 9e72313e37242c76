"""What is learned by: the losses of the three kinds of objective, and the space their targets live in.

Latent (IWM, I-JEPA; paper equation 2) and pixels (generative world models, MAE) share one loss; a pixel target is the
image's own patches, target(y) = norm(patches of y), and needs no teacher:

    L = mean_i || p(f(x_visible), a)_i - target(y)_i ||^2,   target(y) = norm(f-bar(y)), no gradient

`token` normalisation is LayerNorm without affine (I-JEPA's lineage). `batch` normalises every channel by running
statistics over images and positions; at small scale the two could not be told apart (docs/small-data.md). The
statistics used in a step are those folded in before it, so neither the number of micro-batches nor of ranks changes
the targets.

At small scale the latent loss alone lets the features fall into a few directions (average colour first), which an EMA
teacher then hands on. Two terms of VICReg (Bardes et al. 2022, equations 1 and 3) on the student's context tokens keep
them spread:

    variance = mean_j max(0, 1 - sqrt(Var(z_j) + e)),   covariance = sum_{i != j} Cov(z)_ij^2 / d

Joint embedding (`iwm.projector`) predicts nothing: queries q of one view are compared with keys k of the other.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from iwm import config

FLOOR = 1e-4
"""Smallest variance of a channel that is divided by: a dead channel stays dead instead of being blown up."""


class TargetNorm(nn.Module):
    """Maps the teacher's tokens, or patches of pixels, to target space. Its buffers serve training, MRR, prediction and
    inference alike. `token` on patches is MAE's normalisation, whose deviation is the unbiased one."""

    mean: Tensor
    variance: Tensor
    folded: Tensor
    pending: Tensor | None = None
    """Sums of a step's micro-batches: no buffer, or DDP would overwrite every rank's with the first one's."""

    def __init__(self, settings: config.Objective, width: int) -> None:
        super().__init__()
        self.kind, self.of_pixels = settings.target_norm, settings.kind == "pixels"
        if self.kind == "batch":
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("variance", torch.ones(width))
            self.register_buffer("folded", torch.zeros(()))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        tokens = tokens.float()
        if self.kind == "token" and self.of_pixels:
            variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
            return (tokens - mean) / (variance + 1e-6).sqrt()
        if self.kind == "token":
            return F.layer_norm(tokens, tokens.shape[-1:])
        return (tokens - self.mean) * self.variance.clamp_min(FLOOR).rsqrt()

    @torch.no_grad()
    def observe(self, tokens: Float[Tensor, "b n d"]) -> None:
        """Add a micro-batch to the sums that the next `fold` takes in."""
        if self.kind == "batch":
            values = tokens.flatten(0, 1).float()
            variance, mean = torch.var_mean(values, dim=0, correction=0)
            moments = torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
            sums = len(values) * moments.double()
            self.pending = sums if self.pending is None else self.pending + sums

    @torch.no_grad()
    def fold(self, momentum: float = 0.95) -> None:
        """Take the pending sums into the running statistics, once a step; a plain average over the first steps."""
        if self.kind != "batch" or self.pending is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.pending)
        count, total, squares = self.pending.unbind()
        mean = total / count.clamp_min(1)
        variance = (squares / count.clamp_min(1) - mean.square()).clamp_min(0)
        weight = torch.clamp(1 / (self.folded + 1), min=1 - momentum)
        # A batch with a non-finite value (or none at all) leaves the statistics as they are, on the device.
        usable = torch.isfinite(self.pending).all() & (count[0] > 0)
        weight = torch.where(usable, weight, 0)
        self.mean.lerp_(torch.where(usable, mean.float(), self.mean), weight)
        self.variance.lerp_(torch.where(usable, variance.float(), self.variance), weight)
        self.folded += usable
        self.pending = None


def patches_of(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b n d"]:
    """The pixels of every patch of `size` x `size`, d = 3 size^2 numbers (row, column, colour; MAE's order), patches in
    row-major order. Sides must be multiples of `size`."""
    return (
        F.pixel_unshuffle(images, size).unflatten(1, (3, size * size)).permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2)
    )


def latent_loss(prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
    """Mean squared error over images, positions and channels, in float32 (paper equation 2 up to a constant; MAE)."""
    return F.mse_loss(prediction.float(), target.float())


def info_nce(queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"], temperature: float) -> Float[Tensor, ""]:
    """2 t mean_i -log softmax_j(cos(q_i, k_j) / t)_i in float32: the key of the same image among those of the batch
    (Chen, Xie and He 2021, algorithm 1)."""
    with torch.autocast(queries.device.type, enabled=False):  # autocast would multiply in bfloat16 all the same
        queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        logits = queries @ keys.T / temperature
        return 2 * temperature * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def regression(queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """mean_i |q_i / |q_i| - k_i / |k_i||^2 = 2 - 2 cos(q_i, k_i) in float32 (Grill et al. 2020, equation 2)."""
    return 2 - 2 * F.cosine_similarity(queries.float(), keys.float(), dim=-1).mean()


def variance_covariance(
    tokens: Float[Tensor, "b c d"], positions: Int64[Tensor, "b c"], count: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """VICReg's variance and covariance terms over images, in float32.

    Every token is centred by the mean of its position (`positions` of a grid of `count`) over the micro-batch first:
    otherwise features that say nothing but the position would satisfy both terms.
    """
    with torch.autocast(tokens.device.type, enabled=False):  # autocast would multiply in bfloat16 all the same
        tokens, where = tokens.float(), positions.unsqueeze(2)
        # No position is twice in an image: spread out and summed over the images, which on a GPU is the same every time
        # and waits for nobody, as adding by index (atomically) and counting (asks for the largest) are not.
        placed = tokens.new_zeros(len(tokens), count, tokens.shape[2]).scatter(1, where.expand_as(tokens), tokens)
        seen = tokens.new_zeros(len(tokens), count, 1).scatter(1, where, 1.0).sum(0).clamp_min(1)
        centred = (tokens - (placed.sum(0) / seen)[positions]).flatten(0, 1)
        covariance = centred.T @ centred / max(1, len(centred) - 1)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        others = covariance.square().sum() - covariance.diagonal().square().sum()
        return F.relu(1 - spread).mean(), others / centred.shape[1]
