"""MLPs behind the encoder whose outputs are compared in its place, thrown away after training.

Every BatchNorm takes the statistics of the micro-batch in hand over all ranks, in health checks too, so it has no
state.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from iwm.runtime import distributed


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm by the statistics of the batch in hand over all ranks, each of which has as many rows."""

    def forward(self, input: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        if distributed.size() == 1:
            return super().forward(input)
        values = input.float()
        values = values - distributed.all_reduce_mean(values.mean(dim=0))
        values = values * (distributed.all_reduce_mean(values.square().mean(dim=0)) + self.eps).rsqrt()
        if self.affine:
            values = values * self.weight + self.bias
        return values.to(input.dtype)


def mlp(widths: list[int], last_norm: bool) -> nn.Sequential:
    """Linear, BatchNorm and ReLU for every width but the last, which is a Linear, normalised without affine or not."""
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(pairwise(widths), start=2):
        last = number == len(widths)
        normed = last_norm or not last
        layers.append(nn.Linear(inner, outer, bias=not normed))
        if normed:
            layers.append(BatchNorm(outer, affine=not last, track_running_stats=False))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
