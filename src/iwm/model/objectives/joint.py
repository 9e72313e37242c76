"""The joint embedding: two views of an image are to be embedded alike.

Its own parts are thrown away after training: projector g, its EMA twin g-bar, predictor MLP q.

    query = q(g(mean of f(view))),   key = g-bar(mean of f-bar(other view)), no gradient
    loss  = d(query_1, key_2) + d(query_2, key_1)

`contrastive` is MoCo v3 (Chen, Xie and He 2021): g has three layers, q two, a BatchNorm without affine at the end of
both; `regression` is BYOL (Grill et al. 2020): two layers each, no BatchNorm at the end. Keys are those of all ranks.
Tokens are averaged, for the encoder has no class token.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iwm import config
from iwm.actions.views import Views
from iwm.model.flops import encoder_flops, patch_count, student_passes
from iwm.model.masks import Masks
from iwm.model.objectives.objective import Examination, ModelParts, Objective, Output
from iwm.model.objectives.projector import mlp
from iwm.runtime import distributed
from iwm.runtime.errors import UserError


def info_nce(queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"], temperature: float) -> Float[Tensor, ""]:
    """2 t mean_i -log softmax_j(cos(q_i, k_j) / t)_i in float32: the key of the same image among those of the batch,
    of all ranks (Chen, Xie and He 2021, algorithm 1)."""
    with torch.autocast(queries.device.type, enabled=False):  # autocast would multiply in bfloat16 all the same
        queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        logits = queries @ distributed.all_gather(keys).T / temperature
        own = torch.arange(len(logits), device=logits.device) + distributed.rank() * len(logits)
        return 2 * temperature * F.cross_entropy(logits, own)


def regression(queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """mean_i |q_i / |q_i| - k_i / |k_i||^2 = 2 - 2 cos(q_i, k_i) in float32 (Grill et al. 2020, equation 2)."""
    return 2 - 2 * F.cosine_similarity(queries.float(), keys.float(), dim=-1).mean()


class Comparison(nn.Module):
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


class Joint(Objective):
    """Embed two views of an image alike (MoCo v3, BYOL); there is no predictor of patches, and masks play no part."""

    name = "joint"
    noun = "a joint embedding"
    predicts = False
    any_grid = True
    unread = (
        *("objective.error", "objective.target_norm", "masks.predict"),
        *(f"predictor.{name}" for name in ("depth", "width", "conditioning", "mlp_ratio", "init")),
    )
    baseline = "chance_loss"
    ignorance = "nothing of the image"
    learner = "the embedding"

    def check(self) -> None:
        super().check()
        s, settings = self.settings.objective, self.settings
        if s.variance or s.covariance:
            raise UserError("objective.variance and objective.covariance are no part of objective.kind joint; give 0.")
        if settings.masks.sampler != "none":
            raise UserError("objective.kind joint masks nothing; give masks.sampler none.")
        if settings.masks.queries != 1:
            raise UserError("objective.kind joint predicts no patches, so masks.queries chooses none; give 1.")
        if settings.masks.whole and settings.views.geometry == "independent":
            raise UserError(
                "masks.whole shows the unchanged crop as source, and views.geometry independent has two crops that are "
                "both changed; give 0."
            )
        if settings.encoder.train == "none":
            kinds = "all or last-K" if settings.encoder.name else "all"
            raise UserError(
                f"objective.kind joint trains the encoder, and here it stands still; give encoder.train {kinds}."
            )
        if settings.optim.batch_size < 2 * settings.optim.accumulate:
            raise UserError(
                "objective.kind joint compares images with one another: optim.batch_size must be at least twice "
                "optim.accumulate."
            )

    @classmethod
    def summary(cls, values: Mapping[str, Any]) -> str:
        return f"joint embedding, {values.get('objective.invariance', '?')}, no predictor"

    @property
    def size(self) -> str:
        return f"MLP {self.settings.objective.projector_width}"

    # ---- training ----------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        return {"joint": Comparison(self.settings.objective, self.settings.encoder.width)}

    def forward(self, model: ModelParts, views: Views, masks: Masks) -> Output:
        """Both views whole through student and teacher: each one's query against the other's key."""
        comparison, both = comparison_of(model), torch.cat([views.source, views.target])
        queries = [comparison.query(part) for part in model.encoder.tokens(both).mean(dim=1).chunk(2)]
        with torch.no_grad():
            keys = [comparison.key(part) for part in model.target_encoder.tokens(both).mean(dim=1).chunk(2)]
        query, key = torch.stack(queries, dim=1), torch.stack(keys[::-1], dim=1)
        loss = comparison.loss(query, key)
        return Output(loss, loss, query, key)

    def averages(self, model: ModelParts) -> list[tuple[nn.Module, nn.Module]]:
        comparison = comparison_of(model)
        return [(comparison.target_projector, comparison.projector)]

    # ---- health ------------------------------------------------------------------------------------------------

    def health(self, model: ModelParts, seen: Examination) -> dict[str, float]:
        return {"chance_loss": comparison_of(model).chance(seen.output.target)}

    @classmethod
    def remarks(cls, line: Mapping[str, Any]) -> list[str]:
        return ["A joint embedding has no predictor, so no world model is judged."]

    # ---- cost --------------------------------------------------------------------------------------------------

    def _layers(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(inputs, outputs) of the Linears of the projector, and of the predictor MLP."""
        s = self.settings.objective
        hidden, dim = s.projector_width, s.projector_dim
        middle = [(hidden, hidden)] if s.invariance == "contrastive" else []
        return [(self.settings.encoder.width, hidden), *middle, (hidden, dim)], [(dim, hidden), (hidden, dim)]

    def parameter_count(self, actions: int) -> int:
        """Weights, affines of the inner BatchNorms, and the last layers' biases where no BatchNorm follows them."""
        s, (projector, mlp) = self.settings.objective, self._layers()
        affine = 2 * s.projector_width * (len(projector) + len(mlp) - 2)
        biases = 0 if s.invariance == "contrastive" else 2 * s.projector_dim
        return sum(map(math.prod, projector + mlp)) + affine + biases

    def step_flops(self, actions: int) -> float:
        """Two views through student and teacher, their projectors and the predictor MLP."""
        projector, mlp = (2 * sum(map(math.prod, layers)) for layers in self._layers())
        encoder = encoder_flops(self.settings, patch_count(self.settings))
        return 2 * ((1 + student_passes(self.settings)) * encoder + 4 * projector + 3 * mlp)


def comparison_of(model: nn.Module) -> Comparison:
    """The projectors and predictor MLP of a joint embedding."""
    return cast(Comparison, model.get_submodule("joint"))
