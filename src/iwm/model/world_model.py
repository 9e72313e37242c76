"""The image world model: encoder f, EMA target encoder f-bar, predictor p and target normalisation in one nn.Module.

    loss = mean_i || p(f(x_visible), a)_i - norm(f-bar(y))_i ||^2        (paper equation 2; objective.kind latent)
    loss = mean_i || p(f(x_visible), a)_i - norm(patches of y)_i ||^2    (generative world models, MAE; pixels)
    loss = d(q(g(f(x))), g-bar(f-bar(y))) and back                       (joint embedding, no predictor p; joint)

The EMA lives inside the module, so whatever saves or shards the module takes it along; every kind keeps it, for f-bar
is what is used after training.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.views import Views
from iwm.model.action_search import Search, descend
from iwm.model.encoder import Encoder
from iwm.model.masks import Masks
from iwm.model.objectives.joint import Joint
from iwm.model.objectives.latent import latent_loss
from iwm.model.objectives.pixels import patches_of
from iwm.model.objectives.spread import variance_covariance
from iwm.model.objectives.target_norm import TargetNorm
from iwm.model.predictor import Predictor
from iwm.model.vit import Grid, gather_tokens
from iwm.runtime.errors import UserError

Pixels = Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
"""Images of any size: uint8, or float in [0, 1]."""


@dataclass(frozen=True)
class Tokens:
    """Patch tokens with the grid they lie on, in row-major order."""

    values: Float[Tensor, "b n d"]
    grid: Grid

    @property
    def pooled(self) -> Float[Tensor, "b d"]:
        """Mean over the patches."""
        return self.values.mean(dim=1)


@dataclass(frozen=True)
class Output:
    """One training forward pass. All tensors are on the device and in target space; of a joint embedding they are the
    queries of the two views, and the keys each is compared with."""

    loss: Float[Tensor, ""]
    """What is minimised."""
    latent: Float[Tensor, ""]
    """The same without the spread terms: what the health numbers are compared with."""
    prediction: Float[Tensor, "b q d"]
    target: Float[Tensor, "b q d"]


class ImageWorldModel(nn.Module):
    """Train with `forward`, use with `encode`, `action`, `predict`, `target`.

    Everything after training uses the EMA encoder unless `student=True` is given. A joint embedding has `joint` in
    place of `predictor`, and can only `encode`.
    """

    predictor: Predictor
    joint: Joint

    def __init__(self, settings: config.Config, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.settings = settings
        size = settings.data.image_size
        self.space = space or ActionSpace.from_config(settings.actions, size)
        self.encoder = Encoder(settings.encoder, size)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        objective, width = settings.objective, settings.encoder.width
        said = 3 * settings.encoder.patch_size**2 if objective.kind == "pixels" else width
        if objective.kind == "joint":
            self.joint = Joint(objective, width)
        else:
            self.predictor = Predictor(settings.predictor, width, self.space.dim, self.encoder.grid, said)
        self.target_norm = TargetNorm(objective, said)
        if not 1 <= settings.objective.target_layers <= settings.encoder.depth:
            raise UserError(
                f"objective.target_layers is {settings.objective.target_layers}; it must lie between 1 and "
                f"encoder.depth ({settings.encoder.depth})."
            )
        if settings.optim.freeze_encoder:
            self.encoder.requires_grad_(False)
        if objective.freeze_patches:
            self.encoder.patch_embed.requires_grad_(False)

    @property
    def grid(self) -> Grid:
        """Patch grid at the training size."""
        return self.encoder.grid

    @property
    def device(self) -> torch.device:
        return self.encoder.mean.device

    def require_predictor(self) -> None:
        """Raises UserError when there is no world model to ask: a joint embedding predicts nothing."""
        if self.settings.objective.kind == "joint":
            raise UserError(
                "This run is a joint embedding (objective.kind joint) without a predictor, so there is no world model "
                "to ask or finetune; use its encoder (iwm probe, --train head, encoder or last-K), or take a run of "
                "kind latent or pixels."
            )

    # ---- training ----------------------------------------------------------------------------------------------

    def forward(self, views: Views, masks: Masks) -> Output:
        """One micro-batch: the target is made of the whole target view, the student sees the source's context.

        A joint embedding sees all of both views, whatever the masks.
        """
        if self.settings.objective.kind == "joint":
            return self._joined(views)
        with torch.no_grad():
            raw = self.raw_target(views.target)
            if self.training:
                self.target_norm.observe(raw)
            target = self.target_norm(raw)
        context = self.encoder.tokens(views.source, masks.context)
        prediction = self.predictor(context, views.action, context=masks.context, queries=masks.predicted)
        target = gather_tokens(target, masks.predicted)
        latent = latent_loss(prediction, target)
        return Output(latent + self._spread(context, masks), latent, prediction, target)

    def _joined(self, views: Views) -> Output:
        """Both views through student and teacher: each one's query against the other's key."""
        both = torch.cat([views.source, views.target])
        queries = [self.joint.query(part) for part in self.encoder.tokens(both).mean(dim=1).chunk(2)]
        with torch.no_grad():
            keys = [self.joint.key(part) for part in self.target_encoder.tokens(both).mean(dim=1).chunk(2)]
        query, key = torch.stack(queries, dim=1), torch.stack(keys[::-1], dim=1)
        loss = self.joint.loss(query, key)
        return Output(loss, loss, query, key)

    def _spread(self, context: Float[Tensor, "b c d"], masks: Masks) -> Float[Tensor, ""] | float:
        """The weighted variance and covariance terms; nothing where both weights are 0, as in the paper."""
        s = self.settings.objective
        if not s.variance and not s.covariance:
            return 0.0
        variance, covariance = variance_covariance(context, masks.context, self.grid[0] * self.grid[1])
        return s.variance * variance + s.covariance * covariance

    @torch.no_grad()
    def calibrate(self, views: Views) -> None:
        """Let the target statistics see a micro-batch before the first step; `after_step` is not involved."""
        if self.settings.objective.kind != "joint":
            self.target_norm.observe(self.raw_target(views.target))

    @torch.no_grad()
    def after_step(self, ema: float) -> None:
        """Move the teacher towards the student and fold the step's target statistics in."""
        moving: list[tuple[nn.Module, nn.Module]] = []
        if not self.settings.optim.freeze_encoder:
            moving.append((self.target_encoder, self.encoder))
        if self.settings.objective.kind == "joint":
            moving.append((self.joint.target_projector, self.joint.projector))
        for teacher, student in moving:
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(teacher.parameters()), list(student.parameters()), 1 - ema
            )
        self.target_norm.fold()

    def raw_target(self, images: Pixels) -> Float[Tensor, "b n d"]:
        """The teacher's tokens, or the pixels of the patches, before target normalisation."""
        if self.settings.objective.kind == "pixels":
            return patches_of(self.encoder.normalise(images), self.encoder.patch_size)
        return self.target_encoder.tokens(images, average=self.settings.objective.target_layers)

    # ---- use ---------------------------------------------------------------------------------------------------

    def encode(self, images: Pixels, *, student: bool = False) -> Tokens:
        """The EMA encoder's tokens after the final norm, [b, n, d]; any image size."""
        encoder = self.encoder if student else self.target_encoder
        return Tokens(encoder.tokens(images.to(self.device)), encoder.grid_of(images))

    def target(self, images: Pixels) -> Tokens:
        """The truth in target space: what `predict` is trained to say of these images.

        Raises UserError where there is no predictor.
        """
        self.require_predictor()
        return Tokens(self.target_norm(self.raw_target(images.to(self.device))), self.encoder.grid_of(images))

    def action(self, **changes: float) -> Float[Tensor, " k"]:
        """An action from raw changes, source to target: `brightness=0.3` (factor), `hue=-0.05` (turns),
        `grayscale=1` (the source carries it, undo it). Nothing given is the null action."""
        return self.space.encode(**changes).to(self.device)

    def predict(self, tokens: Tokens, action: Float[Tensor, " k"] | Float[Tensor, "b k"]) -> Tokens:
        """What the images would look like after the change, at all positions, in target space.

        Raises UserError where there is no predictor.
        """
        self.require_predictor()
        action = action.to(self.device).expand(len(tokens.values), -1)
        return Tokens(self.predictor(tokens.values, action, grid=tokens.grid), tokens.grid)

    @torch.no_grad()
    def infer_action(
        self, images: Pixels, changed_images: Pixels, search: Search | None = None
    ) -> Float[Tensor, "b k"]:
        """The action that turned the images into the changed ones, by search (`iwm.model.action_search`).

        By default what the images may carry and the changed ones do not is sought too.
        """
        tokens = self.encode(images)
        still = self.predict(tokens, self.space.null(1, self.device)[0]).values.float()
        change = self.target(changed_images).values.float() - self.target(images).values.float()

        def energy(rows: Int64[Tensor, " c"], actions: Float[Tensor, "c k"]) -> Float[Tensor, " c"]:
            rows = rows.to(self.device)
            guess = self.predict(Tokens(tokens.values[rows], tokens.grid), actions).values.float()
            return (guess - still[rows] - change[rows]).square().mean(dim=(1, 2)).to(actions.device)

        return descend(energy, self.space, len(images), search or Search()).to(self.device)
