"""Is it learning or collapsing? Numbers a falling loss does not show, and a verdict in words.

The loss is compared with that of a model that knows nothing but the position (predicts, at every position, the mean
over images): targets that drift to position-dependent constants make both fall together. Between-image variance is
that of *raw* target tokens at a fixed position over their total variance; normalised ones are 1 by construction.

Each objective adds numbers and sentences of its own (`iwm.model.objectives`): pixels cannot collapse, and a joint
embedding has no targets, so their between-image variance is that of the EMA encoder's tokens; a joint embedding's loss
is compared with that of a model that knows nothing of the image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iwm.actions.views import Views
from iwm.model import target_measures
from iwm.model.masks import Masks
from iwm.model.objectives import OBJECTIVES, Objective
from iwm.model.objectives.objective import Examination
from iwm.model.objectives.spread import photometric_share
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import shards
from iwm.runtime.algebra import double
from iwm.runtime.errors import UserError


def rankme(features: Float[Tensor, "n d"]) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2023, eq. 1)."""
    if not torch.isfinite(features).all():
        return math.nan
    values = torch.linalg.svdvals(double(features))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.exp(torch.special.entr(shares).sum()))


def target_variance(raw: Float[Tensor, "b n d"]) -> float:
    """Share of the tokens' variance that lies between images at a fixed position; 0: they depend on position only."""
    raw = double(raw)
    between = (raw - raw.mean(dim=0)).square().mean()
    total = (raw - raw.mean(dim=(0, 1))).square().mean()
    return float(between / total) if total > 1e-12 else 0.0


@torch.no_grad()
def measure(model: ImageWorldModel, views: Views, masks: Masks, changes: Views | None = None) -> dict[str, Any]:
    """Every health number on one batch of views; the photometric shares on `changes`, where they are others.

    Losses are in target space at the queried positions; action_sensitivity = |p(a) - p(0)|^2 / |target(y_a) -
    target(x)|^2 with the target's clean twin as source, so 1 is a prediction that moves as far as the truth;
    action_slope and action_correlation are those of the predicted on the true change. Of a joint embedding: chance_loss
    in their place. `iwm.model.target_measures` says what the targets are made of.
    """
    training, objective = model.training, model.objective
    model.eval()
    raw = objective.raw_target(model, views.target)
    output = model(views, masks)
    tokens = model.encode(views.target)
    source = objective.raw_target(model, views.source) if objective.predicts else None
    seen = Examination(views, masks, output, raw, source, tokens.values)
    own = objective.health(model, seen)
    features = raw if objective.learned_targets else tokens.values
    if objective.predicts and objective.learned_targets:
        own = own | _targets(model, seen, changes)
    student, teacher = [*model.encoder.parameters()], [*model.target_encoder.parameters()]
    gap = shards.squared_norm([s - t for s, t in zip(student, teacher, strict=True)])
    size = shards.squared_norm(student)
    model.train(training)
    return {
        "health_loss": float(output.latent),
        **own,
        "rankme": rankme(tokens.pooled.float()),
        "target_variance": target_variance(features.float()),
        "ema_gap": float((gap / size).sqrt()),
    }


def _targets(model: ImageWorldModel, seen: Examination, changes: Views | None) -> dict[str, Any]:
    """What the targets are made of, and whether the last block, where it is trained for that, is more invariant."""
    encoder, target = model.target_encoder, model.target_norm(seen.raw)
    further = model.settings.objective.invariance_weight > 0
    numbers = [number for number in encoder.alike if further or number <= encoder.layer]
    line = target_measures.measures(model, seen.views, target, numbers)
    line["target_rankme"] = rankme(target.mean(dim=1))
    if changes is not None:
        line["photometric_share"] = target_measures.share_of(model, changes)
    elif seen.source is not None:
        line["photometric_share"] = photometric_share(model.target_norm(seen.source), target)
    if further:
        shown = changes or seen.views
        ends = (shown.source, shown.target)
        line["photometric_share_last"] = photometric_share(
            *(encoder.intermediates(part, [encoder.depth], affine=False)[0] for part in ends)
        )
    return line


@dataclass(frozen=True)
class Verdict:
    """Healthy or ill, with a sentence for each finding."""

    healthy: bool
    findings: tuple[str, ...]
    instruments: tuple[str, ...] = ()
    """What was measured of targets and predicted changes, a sentence each, whether healthy or ill."""

    @property
    def word(self) -> str:
        return "healthy" if self.healthy else "ill"


FEWEST_DIRECTIONS = 6.0
"""RankMe below which features have collapsed into a few directions (docs/small-data.md: 4 and 5; others 12 and up)."""


def objective_in(line: Mapping[str, Any]) -> type[Objective]:
    """The objective whose baseline a line of metrics holds; the first of all where it holds none.

    Objectives with the same baseline are judged alike, unless `judge` is told which one it is.
    """
    kinds = list(OBJECTIVES.values())
    return next((kind for kind in kinds if kind.baseline in line), kinds[0])


def judge(line: Mapping[str, Any], kind: str = "") -> Verdict:
    """A verdict on the newest line of metrics: the keys of `measure` and the training `loss`. None is not finite.

    `kind` is the run's objective.kind; where it is not known here, the line tells. Raises UserError when the line lacks
    one of the numbers that the objective needs.
    """
    objective = OBJECTIVES.get(kind) or objective_in(line)
    wanted = ("loss", "health_loss", objective.baseline, "rankme", "target_variance", *objective.judged)
    judged = [*wanted, *(key for key in ("identity_loss", "ema_gap") if key in line)]
    for key in judged:
        if key not in line or isinstance(line[key], bool) or not isinstance(line[key], int | float | None):
            raise UserError(
                f"The metrics of step {line.get('step', '?')} hold no number `{key}`, so health cannot be judged; "
                "delete that line of metrics.jsonl, or let the run log another."
            )
    instruments = tuple(objective.instruments(line))
    if not all(line[key] is not None and math.isfinite(line[key]) for key in judged):
        diverged = "The run has diverged: a loss or feature is not finite. Lower optim.lr or set optim.clip."
        return Verdict(False, (diverged,), instruments)
    ill = [*_collapse(line, objective), *objective.findings(line)]
    return Verdict(not ill, tuple(ill or _healthy(line, objective)), instruments)


def _collapse(line: Mapping[str, Any], objective: type[Objective]) -> list[str]:
    """Targets or features that have collapsed, and a loss no better than knowing too little."""
    ill: list[str] = []
    loss, known = line["health_loss"], line[objective.baseline]
    if line["target_variance"] < 0.02:
        ill.append(
            f"The EMA encoder's features hardly depend on the image: {line['target_variance']:.1%} of their variance "
            f"lies between images at a fixed position. The encoder is collapsing; try {objective.mend_collapse}."
        )
    if line["rankme"] < FEWEST_DIRECTIONS:
        ill.append(
            f"The features span {line['rankme']:.1f} directions: the representation has collapsed, whatever the loss "
            f"says{objective.mend_rank}."
        )
    if loss >= 0.98 * known:
        ill.append(
            f"The loss ({loss:.3f}) is no better than knowing {objective.ignorance} ({known:.3f}): "
            f"{objective.learner} has learned nothing about the image yet; give it more steps (optim.epochs or "
            "optim.steps)."
        )
    return ill


def _healthy(line: Mapping[str, Any], objective: type[Objective]) -> list[str]:
    loss, known = line["health_loss"], line[objective.baseline]
    return [
        f"Loss {loss:.3f} against {known:.3f} for knowing {objective.ignorance}"
        + (f" ({1 - loss / known:.0%} explained)." if objective.squared else "."),
        f"{line['target_variance']:.0%} of the EMA features' variance lies between images; they span "
        f"{line['rankme']:.0f} directions.",
        *objective.remarks(line),
    ]
