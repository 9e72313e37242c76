"""Objectives that predict the target patch by patch (paper equation 2).

loss = mean_i || p(f(x_visible), a)_i - norm(target(y))_i ||^2 + spread terms + invariance of the last block
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iwm.actions.views import TokenViews, Views
from iwm.model.flops import encoder_flops, patch_count, predictor_flops, predictor_parameters, student_passes
from iwm.model.foreign_encoder import stands_still
from iwm.model.masks import Masks, dropped_count, query_count
from iwm.model.objectives import instruments, invariance
from iwm.model.objectives.objective import Examination, ModelParts, Objective, Output
from iwm.model.objectives.spread import variance_covariance
from iwm.model.vit import gather_tokens
from iwm.runtime import distributed
from iwm.runtime.algebra import joined
from iwm.runtime.errors import UserError


def squared_error(prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
    """Mean squared error over images, positions and channels, in float32 (paper equation 2 up to a constant; MAE)."""
    return F.mse_loss(prediction.float(), target.float())


def _for_sources(tokens: Float[Tensor, "b *x"], count: int) -> Float[Tensor, "s *x"]:
    """What is of the targets, for each of `count` sources in the order of `Views`."""
    times = count // len(tokens)
    return tokens if times == 1 else tokens.repeat(times, *(1 for _ in tokens.shape[1:]))


def _with_gradient(tokens: Float[Tensor, "b n d"], share: float) -> Float[Tensor, "b n d"]:
    """The same tokens, of whose gradient only this share reaches what made them."""
    return tokens if share == 1 else tokens.detach().lerp(tokens, share)


class PatchPrediction(Objective):
    """Predict what there is at every queried patch of the target, told the action. Your own overrides `raw_target`,
    `output_width`, or `compare` (then with `squared = False` unless it is a squared error)."""

    baseline = "position_mean_loss"
    ignorance = "the position only"
    learner = "the predictor"
    squared = True
    invariant_block = True
    shares_targets = True
    any_grid = True
    judged = ("action_sensitivity",)
    mend_collapse = "a higher optim.ema, or objective.target_norm batch where it has another"
    mend_rank = "; raise objective.variance and objective.covariance (the small recipes': 0.1, 0.004)"

    def check(self) -> None:
        s = self.settings
        if s.views.geometry == "independent":
            raise UserError(
                f"views.geometry independent leaves objective.kind {self.name} without patches that correspond; give "
                "views.geometry shared, or objective.kind joint."
            )
        super().check()
        if s.predictor.residual:
            self._check_residual()
        if self._is_invariant:
            self._check_invariance()
        if s.masks.sampler == "none" and s.masks.predict == "dropped":
            raise UserError("masks.sampler none drops no patch to predict; give masks.predict all, or another sampler.")

    def _check_residual(self) -> None:
        s = self.settings
        if s.objective.target_layers != 1:
            raise UserError("predictor.residual changes the tokens it is given; give objective.target_layers 1.")
        hidden = s.masks.sampler != "none" and s.masks.predict != "visible"
        if hidden and not stands_still(s.encoder):
            raise UserError(
                "predictor.residual says how the source's own tokens change, so it must see them; give masks.predict "
                "visible, or masks.sampler none."
            )

    def _check_invariance(self) -> None:
        s = self.settings
        if s.objective.whole_gradient < 1:
            raise UserError(
                "objective.whole_gradient keeps a share of the gradient of whole sources from the encoder, and "
                "objective.invariance_weight would train it by them all the same; give 1, or a weight of 0."
            )
        if s.encoder.train == "none":
            raise UserError(
                "objective.invariance_weight trains the encoder's last block, encoder.train none no block at all; give "
                "0, or let the encoder learn."
            )
        if s.optim.batch_size < 2 * s.optim.accumulate:
            raise UserError(
                "objective.invariance_weight takes variances over images: optim.batch_size must be at least twice "
                "optim.accumulate."
            )
        if s.actions.set == "photometric" and s.actions.level == "jitter" and not s.actions.jitter_probability:
            raise UserError(
                "objective.invariance_weight compares two photometric views, and these are the same "
                "(actions.jitter_probability 0); give 0, or views that differ."
            )

    @classmethod
    def summary(cls, values: Mapping[str, Any]) -> str:
        depth, width, conditioning = (
            values.get(f"predictor.{name}", "?") for name in ("depth", "width", "conditioning")
        )
        return f"predictor IWM({depth}, {width}), {conditioning}"

    # ---- training ----------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        return {invariance.PROJECTOR: invariance.projector_of(self.settings)} if self._is_invariant else {}

    @property
    def _is_invariant(self) -> bool:
        return self.settings.objective.invariance_weight > 0

    def compare(self, prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
        """The loss at the queried positions."""
        if self.settings.objective.error == "smooth_l1":
            return F.smooth_l1_loss(prediction.float(), target.float())
        return squared_error(prediction, target)

    def forward(self, model: ModelParts, views: Views | TokenViews, masks: Masks) -> Output:
        """The target is made of the whole target view, the student sees the source's context."""
        with torch.no_grad():
            raw = self.target_tokens(model, views)
            if model.training:
                self.observe(model, views, raw)
            whole = model.target_norm(raw)
            target = joined([gather_tokens(whole, asked) for asked in masks.predicted.split(len(raw))])
        share = self.settings.objective.whole_gradient if masks.context.shape[1] == raw.shape[1] else 1.0
        # Replicas expect a gradient of every parameter in every step: there it is zeros, which the step takes away.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (share > 0 or distributed.size() > 1)):
            context, start, last = self.context(model, views, masks)
        context, start = _with_gradient(context, share), None if start is None else _with_gradient(start, share)
        # Early in training the images may be smaller (data.start_size).
        grid = None if isinstance(views, TokenViews) else model.encoder.grid_of(views.target)
        prediction = model.predictor(context, views.action, context=masks.context, queries=masks.predicted, grid=grid)
        if start is not None:
            prediction = prediction.float() + model.target_norm(start)
        loss = self.compare(prediction, target)
        total = loss + self.spread(context, masks, raw.shape[1])
        if last is None:
            return Output(total, loss, prediction, target)
        projector = model.get_submodule(invariance.PROJECTOR)
        term = invariance.vicreg(*(projector(tokens.mean(dim=1)) for tokens in last))
        return Output(total + self.settings.objective.invariance_weight * term, loss, prediction, target, term)

    def context(
        self, model: ModelParts, views: Views | TokenViews, masks: Masks
    ) -> tuple[Float[Tensor, "b c d"], Float[Tensor, "b q d"] | None, tuple[Tensor, ...] | None]:
        """The source's tokens that are seen; for `predictor.residual` its tokens where it is asked; and for
        `objective.invariance_weight` the last block's tokens of source and target at the patches that are seen."""
        residual, last = self.settings.predictor.residual, None
        if isinstance(views, TokenViews):
            seen = gather_tokens(views.source, masks.context)
            return seen, gather_tokens(views.source, masks.predicted) if residual else None, None
        if residual and stands_still(self.settings.encoder):
            whole = model.encoder.tokens(views.source)
            return gather_tokens(whole, masks.context), gather_tokens(whole, masks.predicted), None
        if self._is_invariant:
            target = _for_sources(views.target, len(views.source))
            both, kept = torch.cat([views.source, target]), torch.cat([masks.context, masks.context])
            tokens, ends = model.encoder.tokens_and_last(both, kept)
            seen, last = tokens.chunk(2)[0], ends.chunk(2)
        else:
            seen = model.encoder.tokens(views.source, masks.context)
        if not residual:
            return seen, None, last
        height, width = model.encoder.grid_of(views.source)
        count = height * width
        whole = seen.new_zeros(len(seen), count, seen.shape[2])
        whole = whole.scatter(1, masks.context.unsqueeze(2).expand_as(seen), seen)
        return seen, gather_tokens(whole, masks.predicted), last

    def target_tokens(self, model: ModelParts, views: Views | TokenViews) -> Float[Tensor, "b n r"]:
        """`raw_target` of the target views."""
        return views.target if isinstance(views, TokenViews) else self.raw_target(model, views.target)

    def observe(self, model: ModelParts, views: Views | TokenViews, raw: Float[Tensor, "b n r"]) -> None:
        """Let the target statistics see what the targets are; `change` also what they were in the source."""
        before = None
        if self.settings.objective.target_norm == "change":
            first = views.source[: len(raw)]  # of several sources the one that there would be alone
            before = first if isinstance(views, TokenViews) else self.raw_target(model, first)
        model.target_norm.observe(raw, before)

    def spread(self, context: Float[Tensor, "b c d"], masks: Masks, count: int) -> Float[Tensor, ""] | float:
        """The weighted variance and covariance terms on a grid of `count` patches; nothing where both weights are 0, as
        in the paper."""
        s = self.settings.objective
        if not s.variance and not s.covariance:
            return 0.0
        variance, covariance = variance_covariance(context, masks.context, count)
        return s.variance * variance + s.covariance * covariance

    def calibrate(self, model: ModelParts, views: Views | TokenViews) -> None:
        self.observe(model, views, self.target_tokens(model, views))

    # ---- health ------------------------------------------------------------------------------------------------

    def health(self, model: ModelParts, seen: Examination) -> dict[str, float]:
        """The losses of knowing the position only and of the identity, and how predictions follow the action."""
        views, masks, truth = seen.views, seen.masks, seen.output.target
        target, space, count = model.target_norm(seen.raw), model.space, len(views.target)
        mean = target.mean(dim=0, keepdim=True).expand_as(target)
        squared = self.squared and self.settings.objective.error == "squared"
        unbiased = count / max(1, count - 1) if squared else 1.0  # the mean was fitted on these very images
        assert seen.source is not None
        source = model.target_norm(seen.source)

        # The target image seen unmasked, told to change into its partner's colours and told to change nothing.
        change = space.sample_bank(0, 0, count)
        changed = model.target_norm(self.raw_target(model, space.apply(views.target, change)))
        action = space.difference(space.neutral(count), change).to(views.target.device)
        grid = model.encoder.grid_of(views.target)
        moved = model.predictor(seen.tokens, action, grid=grid).float()
        still = model.predictor(seen.tokens, torch.zeros_like(action), grid=grid).float()
        moves = (changed - target).square().sum()
        along, distance = ((moved - still) * (changed - target)).sum(), (moved - still).square().sum()
        position_mean = float(self.compare(gather_tokens(mean, masks.predicted), truth) * unbiased)
        return {
            "position_mean_loss": position_mean,
            "identity_loss": float(self.compare(gather_tokens(source, masks.predicted), truth)),
            "action_sensitivity": float(distance / moves.clamp_min(1e-12)),
            "action_slope": float(along / moves.clamp_min(1e-12)),
            "action_correlation": float(along / (moves * distance).sqrt().clamp_min(1e-12)),
            "residual": float(self.settings.predictor.residual),
            "conditioned": float(model.predictor.conditioning.uses_action and float(moves) > 0),
            **({} if seen.output.invariance is None else {"invariance_loss": float(seen.output.invariance)}),
        }

    @classmethod
    def findings(cls, line: Mapping[str, Any]) -> list[str]:
        if line.get("residual") and line["health_loss"] >= line["identity_loss"]:
            return ["The predictor foretells the change no better than 'nothing changes'; train longer."]
        if not line.get("conditioned", 1.0) or line["action_sensitivity"] >= 0.02:
            return []
        return [
            f"The predictor ignores the action (sensitivity {line['action_sensitivity']:.3f}; 1 moves as far as the "
            "truth). Train longer, or try predictor.conditioning adaln and predictor.init xavier where it has others."
        ]

    @classmethod
    def remarks(cls, line: Mapping[str, Any]) -> list[str]:
        if not line.get("conditioned", 1.0):
            return ["The predictor is told no action (conditioning none), so it follows none."]
        moves = f"sensitivity {line['action_sensitivity']:.2f} (1 = as far as the truth)."
        return [f"Predictions move with the action: {moves}", *instruments.telling(line)]

    @classmethod
    def instruments(cls, line: Mapping[str, Any]) -> list[str]:
        return [*instruments.of_targets(line), *instruments.of_changes(line)]

    # ---- cost --------------------------------------------------------------------------------------------------

    def parameter_count(self, actions: int) -> int:
        own = invariance.parameter_count(self.settings) if self._is_invariant else 0
        return predictor_parameters(self.settings, actions, self.output_width) + own

    def step_flops(self, actions: int) -> float:
        """Of every source the context through the student, context and queries through the predictor, and once the
        teacher's targets; with the invariance term the target's patches at the context, too, and both through all
        blocks and the projector."""
        s, patches = self.settings, patch_count(self.settings)
        side = s.data.image_size // s.encoder.patch_size
        dropped = dropped_count(s.masks, (side, side))
        positions = {"dropped": dropped, "all": patches, "visible": patches - dropped}[s.masks.predict]
        queries = query_count(s.masks, positions)

        def trained(context: int) -> float:
            predictor = predictor_flops(s, actions, context, queries, self.output_width)
            if not self._is_invariant:
                passes = 1.0 if context == patches and not s.objective.whole_gradient else student_passes(s)
                return passes * encoder_flops(s, context) + 3 * predictor
            views = 2 * (student_passes(s) * encoder_flops(s, context, whole=True) + 3 * invariance.flops(s))
            return views + 3 * predictor

        teacher = encoder_flops(s, patches) if self.learned_targets else 0.0
        whole = s.masks.whole
        return teacher + (1 - whole) * s.masks.sources * trained(patches - dropped) + whole * trained(patches)
