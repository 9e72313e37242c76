"""Is it learning or collapsing? Numbers a falling loss does not show, and a verdict in words.

The loss is compared with that of a model that knows nothing but the position (predicts, at every position, the mean
over images): targets that drift to position-dependent constants make both fall together. Between-image variance is
that of *raw* target tokens at a fixed position over their total variance; normalised ones are 1 by construction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iwm.errors import UserError
from iwm.masks import Masks
from iwm.model import ImageWorldModel
from iwm.views import Views
from iwm.vit import gather_tokens


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
    target(x)|^2 with the target's clean twin as source, so 1 is a prediction that moves as far as the truth.
    """
    training = model.training
    model.eval()
    count = len(views.target)
    raw = model.raw_target(views.target)
    target = model.target_norm(raw)
    output = model(views, masks)
    queried = output.target
    mean = target.mean(dim=0, keepdim=True).expand_as(target)
    unbiased = count / max(1, count - 1)  # the mean was fitted on these very images
    identity = gather_tokens(model.target(views.source).values, masks.predicted)

    # The target image seen unmasked, told to change into its partner's colours and told to change nothing.
    change = model.space.sample_bank(0, 0, count)
    truth = model.target(model.space.apply(views.target, change)).values
    action = model.space.difference(model.space.neutral(count), change).to(views.target.device)
    tokens = model.encode(views.target)
    moved = model.predict(tokens, action).values.float()
    still = model.predict(tokens, torch.zeros_like(action)).values.float()
    moves = (truth - target).square().sum()

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
        "position_mean_loss": float(F.mse_loss(queried, gather_tokens(mean, masks.predicted)) * unbiased),
        "identity_loss": float(F.mse_loss(identity, queried)),
        "rankme": rankme(tokens.pooled.float()),
        "target_variance": target_variance(raw.float()),
        "action_sensitivity": float((moved - still).square().sum() / moves.clamp_min(1e-12)),
        "ema_gap": float((gap / size).sqrt()),
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


JUDGED = ("loss", "health_loss", "position_mean_loss", "rankme", "target_variance", "action_sensitivity")
"""The numbers a verdict needs."""


def judge(line: Mapping[str, Any]) -> Verdict:
    """A verdict on the newest line of metrics: the keys of `measure` and the training `loss`. None is not finite.

    Raises UserError when the line lacks one of the numbers JUDGED.
    """
    ill: list[str] = []
    judged = [*JUDGED, *(key for key in ("identity_loss", "ema_gap") if key in line)]
    for key in judged:
        if key not in line or isinstance(line[key], bool) or not isinstance(line[key], int | float | None):
            raise UserError(
                f"The metrics of step {line.get('step', '?')} hold no number `{key}`, so health cannot be judged; "
                "delete that line of metrics.jsonl, or let the run log another."
            )
    loss, known = line["health_loss"], line["position_mean_loss"]
    if not all(line[key] is not None and math.isfinite(line[key]) for key in judged):
        ill.append("The run has diverged: a loss or feature is not finite. Lower optim.lr or set optim.clip.")
        return Verdict(False, tuple(ill))
    if line["target_variance"] < 0.02:
        ill.append(
            f"The targets hardly depend on the image: {line['target_variance']:.1%} of their variance lies between "
            "images at a fixed position. The encoder is collapsing; try objective.target_norm batch or a higher "
            "optim.ema."
        )
    if line["rankme"] < 2.0:
        ill.append(f"The features span {line['rankme']:.1f} directions: the representation has collapsed.")
    if loss >= 0.98 * known:
        ill.append(
            f"The loss ({loss:.3f}) is no better than knowing the position only ({known:.3f}): the predictor has "
            "learned nothing about the image yet."
        )
    if line.get("conditioned", 1.0) and line["action_sensitivity"] < 0.02:
        ill.append(
            f"The predictor ignores the action (sensitivity {line['action_sensitivity']:.3f}; 1 moves as far as the "
            "truth). Try predictor.conditioning adaln, predictor.init xavier, or train longer."
        )
    if ill:
        return Verdict(False, tuple(ill))
    return Verdict(
        True,
        (
            f"Loss {loss:.3f} against {known:.3f} for knowing the position only ({1 - loss / known:.0%} explained).",
            f"{line['target_variance']:.0%} of the targets' variance lies between images; features span "
            f"{line['rankme']:.0f} directions.",
            f"Predictions move with the action: sensitivity {line['action_sensitivity']:.2f} (1 = as far as the "
            "truth).",
        ),
    )
