"""Objectives that predict the target patch by patch (paper equation 2).

loss = mean_i || p(f(x_visible), a)_i - norm(target(y))_i ||^2 + spread terms
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iwm.actions.views import Views
from iwm.model.flops import encoder_flops, patch_count, predictor_flops, predictor_parameters, student_passes
from iwm.model.masks import Masks, dropped_count, query_count
from iwm.model.objectives.objective import Examination, ModelParts, Objective, Output
from iwm.model.objectives.spread import variance_covariance
from iwm.model.vit import gather_tokens
from iwm.runtime.errors import UserError


def squared_error(prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
    """Mean squared error over images, positions and channels, in float32 (paper equation 2 up to a constant; MAE)."""
    return F.mse_loss(prediction.float(), target.float())


class PatchPrediction(Objective):
    """Predict what there is at every queried patch of the target, told the action. Your own overrides `raw_target`,
    `output_width`, or `compare` (then with `squared = False` unless it is a squared error)."""

    baseline = "position_mean_loss"
    ignorance = "the position only"
    learner = "the predictor"
    squared = True
    judged = ("action_sensitivity",)
    mend_collapse = "objective.target_norm batch or a higher optim.ema"
    mend_rank = "; raise objective.variance and objective.covariance (the small recipes': 0.1, 0.004)"

    def check(self) -> None:
        s = self.settings
        if s.views.geometry == "independent":
            raise UserError(
                f"views.geometry independent leaves objective.kind {self.name} without patches that correspond; give "
                "views.geometry shared, or objective.kind joint."
            )
        super().check()
        if s.masks.sampler == "none" and s.masks.predict == "dropped":
            raise UserError("masks.sampler none drops no patch to predict; give masks.predict all, or another sampler.")

    @classmethod
    def summary(cls, values: Mapping[str, Any]) -> str:
        depth, width, conditioning = (
            values.get(f"predictor.{name}", "?") for name in ("depth", "width", "conditioning")
        )
        return f"predictor IWM({depth}, {width}), {conditioning}"

    # ---- training ----------------------------------------------------------------------------------------------

    def compare(self, prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
        """The loss at the queried positions."""
        if self.settings.objective.error == "smooth_l1":
            return F.smooth_l1_loss(prediction.float(), target.float())
        return squared_error(prediction, target)

    def forward(self, model: ModelParts, views: Views, masks: Masks) -> Output:
        """The target is made of the whole target view, the student sees the source's context."""
        with torch.no_grad():
            raw = self.raw_target(model, views.target)
            if model.training:
                model.target_norm.observe(raw)
            target = model.target_norm(raw)
        context = model.encoder.tokens(views.source, masks.context)
        prediction = model.predictor(context, views.action, context=masks.context, queries=masks.predicted)
        target = gather_tokens(target, masks.predicted)
        loss = self.compare(prediction, target)
        return Output(loss + self.spread(context, masks), loss, prediction, target)

    def spread(self, context: Float[Tensor, "b c d"], masks: Masks) -> Float[Tensor, ""] | float:
        """The weighted variance and covariance terms; nothing where both weights are 0, as in the paper."""
        s = self.settings.objective
        if not s.variance and not s.covariance:
            return 0.0
        variance, covariance = variance_covariance(context, masks.context, patch_count(self.settings))
        return s.variance * variance + s.covariance * covariance

    def calibrate(self, model: ModelParts, views: Views) -> None:
        model.target_norm.observe(self.raw_target(model, views.target))

    # ---- health ------------------------------------------------------------------------------------------------

    def health(self, model: ModelParts, seen: Examination) -> dict[str, float]:
        """The losses of knowing the position only and of the identity, and how predictions follow the action."""
        views, masks, truth = seen.views, seen.masks, seen.output.target
        target, space, count = model.target_norm(seen.raw), model.space, len(views.target)
        mean = target.mean(dim=0, keepdim=True).expand_as(target)
        squared = self.squared and self.settings.objective.error == "squared"
        unbiased = count / max(1, count - 1) if squared else 1.0  # the mean was fitted on these very images
        identity = gather_tokens(model.target_norm(self.raw_target(model, views.source)), masks.predicted)

        # The target image seen unmasked, told to change into its partner's colours and told to change nothing.
        change = space.sample_bank(0, 0, count)
        changed = model.target_norm(self.raw_target(model, space.apply(views.target, change)))
        action = space.difference(space.neutral(count), change).to(views.target.device)
        grid = model.encoder.grid_of(views.target)
        moved = model.predictor(seen.tokens, action, grid=grid).float()
        still = model.predictor(seen.tokens, torch.zeros_like(action), grid=grid).float()
        moves = (changed - target).square().sum()
        return {
            "position_mean_loss": float(self.compare(gather_tokens(mean, masks.predicted), truth) * unbiased),
            "identity_loss": float(self.compare(identity, truth)),
            "action_sensitivity": float((moved - still).square().sum() / moves.clamp_min(1e-12)),
            "conditioned": float(model.predictor.conditioning.uses_action and float(moves) > 0),
        }

    @classmethod
    def findings(cls, line: Mapping[str, Any]) -> list[str]:
        if not line.get("conditioned", 1.0) or line["action_sensitivity"] >= 0.02:
            return []
        return [
            f"The predictor ignores the action (sensitivity {line['action_sensitivity']:.3f}; 1 moves as far as the "
            "truth). Try predictor.conditioning adaln, predictor.init xavier, or train longer."
        ]

    @classmethod
    def remarks(cls, line: Mapping[str, Any]) -> list[str]:
        if not line.get("conditioned", 1.0):
            return ["The predictor is told no action (conditioning none), so it follows none."]
        moves = f"sensitivity {line['action_sensitivity']:.2f} (1 = as far as the truth)."
        return [f"Predictions move with the action: {moves}"]

    # ---- cost --------------------------------------------------------------------------------------------------

    def parameter_count(self, actions: int) -> int:
        return predictor_parameters(self.settings, actions, self.output_width)

    def step_flops(self, actions: int) -> float:
        """Context through the student, context and queries through the predictor, and the teacher's targets."""
        s, patches = self.settings, patch_count(self.settings)
        side = s.data.image_size // s.encoder.patch_size
        dropped = dropped_count(s.masks, (side, side))
        positions = {"dropped": dropped, "all": patches, "visible": patches - dropped}[s.masks.predict]
        queries = query_count(s.masks, positions)

        def trained(context: int) -> float:
            predictor = predictor_flops(s, actions, context, queries, self.output_width)
            return student_passes(s) * encoder_flops(s, context) + 3 * predictor

        teacher = encoder_flops(s, patches) if self.learned_targets else 0.0
        whole = s.masks.whole
        return teacher + (1 - whole) * trained(patches - dropped) + whole * trained(patches)
