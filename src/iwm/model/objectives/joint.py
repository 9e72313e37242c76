"""The joint embedding's own parts, thrown away after training: projector g, its EMA twin g-bar, predictor MLP q.

    query = q(g(mean of f(view))),   key = g-bar(mean of f-bar(other view)), no gradient
    loss  = d(query_1, key_2) + d(query_2, key_1)

`contrastive` is MoCo v3 (Chen, Xie and He 2021): g has three layers, q two, a BatchNorm without affine at the end of
both; `regression` is BYOL (Grill et al. 2020): two layers each, no BatchNorm at the end. Every BatchNorm takes the
statistics of the micro-batch in hand, in health checks too, so it has no state. Tokens are averaged, for the encoder
has no class token.
"""

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iwm import config


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


class Joint(nn.Module):
    """Compares the embeddings of two views; `width` is the encoder's."""

    def __init__(self, settings: config.Objective, width: int) -> None:
        super().__init__()
        self.settings = settings
        hidden, dim = settings.projector_width, settings.projector_dim
        contrastive = settings.invariance == "contrastive"
        depth = 3 if contrastive else 2
        self.projector = mlp([width, *[hidden] * (depth - 1), dim], last_norm=contrastive)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.predictor = mlp([dim, hidden, dim], last_norm=contrastive)

    def query(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return self.predictor(self.projector(pooled))

    @torch.no_grad()
    def key(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return self.target_projector(pooled)

    def loss(self, queries: Float[Tensor, "b 2 e"], keys: Float[Tensor, "b 2 e"]) -> Float[Tensor, ""]:
        """Symmetrised: the query of each view against the key of the other, which stands at the same place."""
        pairs = zip(queries.unbind(1), keys.unbind(1), strict=True)
        if self.settings.invariance == "contrastive":
            return torch.stack([info_nce(q, k, self.settings.temperature) for q, k in pairs]).sum()
        return torch.stack([regression(q, k) for q, k in pairs]).sum()

    def chance(self, keys: Float[Tensor, "b 2 e"]) -> float:
        """The loss of a model that knows nothing of the image: every key as likely, or the mean direction of the keys
        regressed every time."""
        if self.settings.invariance == "contrastive":
            return 2 * 2 * self.settings.temperature * math.log(len(keys))
        mean = F.normalize(keys.float(), dim=-1).mean(dim=0)
        return float((2 - 2 * mean.norm(dim=-1)).sum())


def mlp(widths: list[int], last_norm: bool) -> nn.Sequential:
    """Linear, BatchNorm and ReLU for every width but the last, which is a Linear, normalised without affine or not."""
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(pairwise(widths), start=2):
        last = number == len(widths)
        normed = last_norm or not last
        layers.append(nn.Linear(inner, outer, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(outer, affine=not last, track_running_stats=False))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
