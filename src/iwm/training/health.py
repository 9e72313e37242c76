"""Is it learning or collapsing? Numbers a falling loss does not show, and a verdict in words.

The loss is compared with that of a model that knows nothing but the position (predicts, at every position, the mean
over images): targets that drift to position-dependent constants make both fall together. Between-image variance is
that of *raw* target tokens at a fixed position over their total variance; normalised ones are 1 by construction.

Pixels cannot collapse, and a joint embedding has no targets: their between-image variance is that of the EMA encoder's
tokens. A joint embedding's loss is compared with that of a model that knows nothing of the image, and nothing is asked
of a predictor it does not have.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iwm.actions.views import Views
from iwm.model.masks import Masks
from iwm.model.vit import gather_tokens
from iwm.model.world_model import ImageWorldModel, Output, Tokens
from iwm.runtime.errors import UserError


def rankme(features: Float[Tensor, "n d"]) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2023, eq. 1)."""
    if not torch.isfinite(features).all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.exp(torch.special.entr(shares).sum()))


def target_variance(raw: Float[Tensor, "b n d"]) -> float:
    """Share of the tokens' variance that lies between images at a fixed position; 0: they depend on position only."""
    raw = raw.double()
    between = (raw - raw.mean(dim=0)).square().mean()
    total = (raw - raw.mean(dim=(0, 1))).square().mean()
    return float(between / total) if total > 1e-12 else 0.0


@torch.no_grad()
def measure(model: ImageWorldModel, views: Views, masks: Masks) -> dict[str, float]:
    """Every health number on one batch of views.

    Losses are in target space at the queried positions; action_sensitivity = |p(a) - p(0)|^2 / |target(y_a) -
    target(x)|^2 with the target's clean twin as source, so 1 is a prediction that moves as far as the truth. Of a joint
    embedding: chance_loss in their place.
    """
    training = model.training
    model.eval()
    kind = model.settings.objective.kind
    raw = model.raw_target(views.target)
    output = model(views, masks)
    tokens = model.encode(views.target)
    if kind == "joint":
        asked = {"chance_loss": model.joint.chance(output.target)}
    else:
        asked = _predicting(model, views, masks, output, model.target_norm(raw), tokens)
    features = tokens.values if kind == "pixels" else raw
    gap = sum(
        (
            (s - t).square().sum()
            for s, t in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
        ),
        torch.zeros((), device=raw.device),
    )
    size = sum((p.square().sum() for p in model.encoder.parameters()), torch.zeros((), device=raw.device))
    model.train(training)
    return {
        "health_loss": float(output.latent),
        **asked,
        "rankme": rankme(tokens.pooled.float()),
        "target_variance": target_variance(features.float()),
        "ema_gap": float((gap / size).sqrt()),
    }


def _predicting(
    model: ImageWorldModel,
    views: Views,
    masks: Masks,
    output: Output,
    target: Float[Tensor, "b n d"],
    tokens: Tokens,
) -> dict[str, float]:
    """What only a model with a predictor has: its two reference losses, and how it follows the action."""
    count = len(views.target)
    mean = target.mean(dim=0, keepdim=True).expand_as(target)
    unbiased = count / max(1, count - 1)  # the mean was fitted on these very images
    identity = gather_tokens(model.target(views.source).values, masks.predicted)

    # The target image seen unmasked, told to change into its partner's colours and told to change nothing.
    change = model.space.sample_bank(0, 0, count)
    truth = model.target(model.space.apply(views.target, change)).values
    action = model.space.difference(model.space.neutral(count), change).to(views.target.device)
    moved = model.predict(tokens, action).values.float()
    still = model.predict(tokens, torch.zeros_like(action)).values.float()
    moves = (truth - target).square().sum()
    return {
        "position_mean_loss": float(F.mse_loss(output.target, gather_tokens(mean, masks.predicted)) * unbiased),
        "identity_loss": float(F.mse_loss(identity, output.target)),
        "action_sensitivity": float((moved - still).square().sum() / moves.clamp_min(1e-12)),
        "conditioned": float(model.settings.predictor.conditioning != "none" and float(moves) > 0),
    }


@dataclass(frozen=True)
class Verdict:
    """Healthy or ill, with a sentence for each finding."""

    healthy: bool
    findings: tuple[str, ...]

    @property
    def word(self) -> str:
        return "healthy" if self.healthy else "ill"


FEWEST_DIRECTIONS = 6.0
"""RankMe below which features have collapsed into a few directions (docs/small-data.md: 4 and 5; others 12 and up)."""
JUDGED = ("loss", "health_loss", "position_mean_loss", "rankme", "target_variance", "action_sensitivity")
"""The numbers a verdict needs."""
JUDGED_JOINT = ("loss", "health_loss", "chance_loss", "rankme", "target_variance")
"""Those of a joint embedding, whose lines hold a chance_loss."""


def judge(line: Mapping[str, Any]) -> Verdict:
    """A verdict on the newest line of metrics: the keys of `measure` and the training `loss`. None is not finite.

    Raises UserError when the line lacks one of the numbers JUDGED (or JUDGED_JOINT).
    """
    ill: list[str] = []
    joint = "chance_loss" in line
    judged = [*(JUDGED_JOINT if joint else JUDGED), *(key for key in ("identity_loss", "ema_gap") if key in line)]
    for key in judged:
        if key not in line or isinstance(line[key], bool) or not isinstance(line[key], int | float | None):
            raise UserError(
                f"The metrics of step {line.get('step', '?')} hold no number `{key}`, so health cannot be judged; "
                "delete that line of metrics.jsonl, or let the run log another."
            )
    if not all(line[key] is not None and math.isfinite(line[key]) for key in judged):
        ill.append("The run has diverged: a loss or feature is not finite. Lower optim.lr or set optim.clip.")
        return Verdict(False, tuple(ill))
    loss, known = line["health_loss"], line["chance_loss" if joint else "position_mean_loss"]
    little = "nothing of the image" if joint else "the position only"
    if line["target_variance"] < 0.02:
        ill.append(
            f"The EMA encoder's features hardly depend on the image: {line['target_variance']:.1%} of their variance "
            f"lies between images at a fixed position. The encoder is collapsing; try "
            f"{'' if joint else 'objective.target_norm batch or '}a higher optim.ema."
        )
    if line["rankme"] < FEWEST_DIRECTIONS:
        mend = "" if joint else "; raise objective.variance and objective.covariance (the small recipes': 0.1, 0.004)"
        ill.append(
            f"The features span {line['rankme']:.1f} directions: the representation has collapsed, whatever the loss "
            f"says{mend}."
        )
    if loss >= 0.98 * known:
        ill.append(
            f"The loss ({loss:.3f}) is no better than knowing {little} ({known:.3f}): "
            f"{'the embedding' if joint else 'the predictor'} has learned nothing about the image yet."
        )
    if not joint and line.get("conditioned", 1.0) and line["action_sensitivity"] < 0.02:
        ill.append(
            f"The predictor ignores the action (sensitivity {line['action_sensitivity']:.3f}; 1 moves as far as the "
            "truth). Try predictor.conditioning adaln, predictor.init xavier, or train longer."
        )
    if ill:
        return Verdict(False, tuple(ill))
    return Verdict(True, tuple(_healthy(line, loss, known, little, joint)))


def _healthy(line: Mapping[str, Any], loss: float, known: float, little: str, joint: bool) -> list[str]:
    said = [
        f"Loss {loss:.3f} against {known:.3f} for knowing {little}"
        + (f" ({1 - loss / known:.0%} explained)." if not joint else "."),
        f"{line['target_variance']:.0%} of the EMA features' variance lies between images; they span "
        f"{line['rankme']:.0f} directions.",
    ]
    if joint:
        return [*said, "A joint embedding has no predictor, so no world model is judged."]
    if not line.get("conditioned", 1.0):
        return [*said, "The predictor is told no action (conditioning none), so it follows none."]
    moves = f"sensitivity {line['action_sensitivity']:.2f} (1 = as far as the truth)."
    return [*said, f"Predictions move with the action: {moves}"]
