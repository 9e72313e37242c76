"""Target space: how the teacher's tokens, or the pixels of patches, are normalised before they are predicted.

    token   LayerNorm without affine (I-JEPA's lineage)
    batch   every channel by running statistics over images and positions
    change  every channel in units of its change from source to target, the root of its running mean square

At small scale the two could not be told apart (docs/small-data.md). The statistics used in a step are those folded in
before it, so neither the number of micro-batches nor of ranks changes the targets.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iwm import config
from iwm.runtime import distributed
from iwm.runtime.algebra import double

FLOOR = 1e-4
"""Smallest variance of a channel that is divided by: a dead channel stays dead instead of being blown up."""


class TargetNorm(nn.Module):
    """Maps the teacher's tokens, or patches of pixels, to target space. Its buffers serve training, MRR, prediction and
    inference alike. `token` on patches (`of_pixels`) is MAE's normalisation, whose deviation is the unbiased one."""

    mean: Tensor
    variance: Tensor
    folded: Tensor
    pending: Tensor | None = None
    """Sums of a step's micro-batches: no buffer, or DDP would overwrite every rank's with the first one's."""

    def __init__(self, settings: config.Objective, width: int, of_pixels: bool = False) -> None:
        super().__init__()
        self.kind, self.of_pixels = settings.target_norm, of_pixels
        if self.kind != "token":
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

    def inverse(self, values: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"] | None:
        """What was normalised; None where the statistics were the token's own and are gone with it."""
        if self.kind == "token":
            return None
        return values.float() * self.variance.clamp_min(FLOOR).sqrt() + self.mean

    @torch.no_grad()
    def observe(self, tokens: Float[Tensor, "b n d"], before: Float[Tensor, "b n d"] | None = None) -> None:
        """Add a micro-batch to the sums that the next `fold` takes in; `change` needs the source's tokens `before`."""
        if self.kind != "token":
            values = tokens.flatten(0, 1).float()
            variance, mean = torch.var_mean(values, dim=0, correction=0)
            squares = variance + mean.square()
            if self.kind == "change" and before is not None:
                squares = (values - before.flatten(0, 1).float()).square().mean(dim=0)
            moments = torch.stack([torch.ones_like(mean), mean, squares])
            sums = len(values) * double(moments)
            self.pending = sums if self.pending is None else self.pending + sums

    @torch.no_grad()
    def fold(self, momentum: float = 0.95, finite: Bool[Tensor, ""] | None = None) -> None:
        """Take the pending sums into the running statistics, once a step; a plain average over the first steps.

        Sums of a step that was not `finite` are forgotten; None: it was.
        """
        if self.kind == "token" or self.pending is None:
            return
        self.pending = distributed.all_reduce_sum(self.pending)
        count, total, squares = self.pending.unbind()
        mean = total / count.clamp_min(1)
        centre = 0 if self.kind == "change" else mean.square()  # a change is no deviation from the mean
        variance = (squares / count.clamp_min(1) - centre).clamp_min(0)
        mean, variance = mean.to(self.mean), variance.to(self.mean)
        weight = torch.clamp(1 / (self.folded + 1), min=1 - momentum)
        # A batch with a non-finite value (or none at all) leaves the statistics as they are, on the device.
        usable = (torch.isfinite(self.pending).all() & (count[0] > 0)).to(self.mean.device)
        usable = usable if finite is None else usable & finite
        weight = torch.where(usable, weight, 0)
        self.mean.lerp_(torch.where(usable, mean, self.mean), weight)
        self.variance.lerp_(torch.where(usable, variance, self.variance), weight)
        self.folded += usable
        self.pending = None
