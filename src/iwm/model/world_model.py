"""The image world model: encoder f, EMA target encoder f-bar, predictor p and target normalisation in one nn.Module.

    loss = mean_i || p(f(x_visible), a)_i - norm(f-bar(y))_i ||^2        (paper equation 2; objective.kind latent)
    loss = mean_i || p(f(x_visible), a)_i - norm(patches of y)_i ||^2    (generative world models, MAE; pixels)
    loss = d(q(g(f(x))), g-bar(f-bar(y))) and back                       (joint embedding, no predictor p; joint)

The objective (`iwm.model.objectives`) says which. The EMA lives inside the module, so whatever saves or shards the
module takes it along; every kind keeps it, for f-bar is what is used after training.
"""

import copy
import warnings
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from iwm import config
from iwm.actions import action_text
from iwm.actions.action_space import ActionSpace
from iwm.actions.views import TokenViews, Views
from iwm.model.action_search import Search, descend
from iwm.model.encoder import PatchEncoder, checked_pixels
from iwm.model.foreign_encoder import encoder_of, stands_still
from iwm.model.hub import OnHub
from iwm.model.masks import Masks
from iwm.model.objectives import OBJECTIVES, objective_of
from iwm.model.objectives.objective import ModelParts, Output, Pixels
from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.predictor import Predictor
from iwm.model.vit import Grid
from iwm.runtime import distributed, shards
from iwm.runtime.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """Patch tokens with the grid they lie on, in row-major order."""

    values: Float[Tensor, "b n d"]
    grid: Grid

    @property
    def pooled(self) -> Float[Tensor, "b d"]:
        """Mean over the patches."""
        return self.values.mean(dim=1)


class ImageWorldModel(ModelParts, OnHub):
    """Train with `forward`, use with `encode`, `action`, `predict`, `target`, and `decode` where a decoder was fitted.

    Everything after training uses the EMA encoder unless `student=True` is given. A model whose objective does not
    predict (a joint embedding) has no `predictor`, and can only `encode`.

    Raises UserError when the settings name no known objective or conditioning, or sizes that do not fit.
    """

    decoder: PixelDecoder | None = None
    """What `iwm decoder` fitted to these very weights; no part of the module's state."""
    has_student: bool = True
    """Whether `encoder` is the student; of weights that were exported without it, it is a copy of the EMA encoder."""

    def __init__(self, settings: config.Config, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.objective = objective_of(settings)
        size, width = settings.data.image_size, settings.encoder.width
        self.space = space or ActionSpace.from_config(settings.actions, size)
        if stands_still(settings.encoder):
            # One module under two names: student and teacher are the same, and saved once.
            self.target_encoder = encoder_of(settings.encoder, size).requires_grad_(False)
            object.__setattr__(self, "encoder", self.target_encoder)
        else:
            self.encoder = encoder_of(settings.encoder, size)
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        if self.objective.predicts:
            output = self.objective.output_width
            self.predictor = Predictor(settings.predictor, width, self.space.dim, self.encoder.grid, output)
        for name, module in self.objective.modules().items():
            self.add_module(name, module)
        self.target_norm = self.objective.normalisation()
        if not 1 <= settings.objective.target_layers <= self.encoder.layer:
            raise UserError(
                f"objective.target_layers is {settings.objective.target_layers}; it must lie between 1 and "
                f"{'encoder.layer' if self.encoder.layer < self.encoder.depth else 'encoder.depth'} "
                f"({self.encoder.layer})."
            )
        further = settings.objective.invariance_weight > 0
        # Nothing asks anything of what lies behind but the invariance term; of an encoder of others it stands still.
        for part in self.encoder.behind if further or not settings.encoder.name else ():
            part.requires_grad_(further)
        if settings.encoder.train == "none":
            self.encoder.requires_grad_(False)
        if settings.objective.freeze_patches:
            for part in self.encoder.beneath if settings.encoder.name else [self.encoder.patch_embed]:
                part.requires_grad_(False)

    @property
    def grid(self) -> Grid:
        """Patch grid at the training size."""
        return self.encoder.grid

    @property
    def device(self) -> torch.device:
        return self.encoder.mean.device

    def require_predictor(self) -> None:
        """Raises UserError when there is no world model to ask: a joint embedding predicts nothing."""
        if not self.objective.predicts:
            kinds = " or ".join(name for name, kind in OBJECTIVES.items() if kind.predicts)
            raise UserError(
                f"This run is {self.objective.noun} (objective.kind {self.objective.name}) without a predictor, so "
                "there is no world model to ask or finetune; use its encoder (iwm probe, --train head, encoder or "
                f"last-K), or take a run of kind {kinds}."
            )

    # ---- training ----------------------------------------------------------------------------------------------

    def forward(self, views: Views | TokenViews, masks: Masks) -> Output:
        """One micro-batch: what the objective makes of the views under the masks. Only one that predicts the teacher's
        tokens is given views that are tokens already."""
        return self.objective.forward(self, cast(Views, views), masks)

    @torch.no_grad()
    def calibrate(self, views: Views | TokenViews) -> None:
        """Let the target statistics see a micro-batch before the first step; `after_step` is not involved."""
        self.objective.calibrate(self, cast(Views, views))

    def followers(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that the EMA moves, and beside each the one of the student that it follows."""
        moving: list[tuple[nn.Module, nn.Module]] = []
        if self.settings.encoder.train != "none":
            moving.append((self.target_encoder, self.encoder))
        moving.extend(self.objective.averages(self))
        return tuple([p for pair in moving for p in pair[side].parameters()] for side in (0, 1))  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def after_step(
        self,
        ema: float,
        finite: Bool[Tensor, ""] | None = None,
        followers: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None,
    ) -> None:
        """Move the teacher towards the student and fold the step's target statistics in.

        Where `finite`, on the model's device, is False, both stay as they are; None is True. `followers` are those of
        this model, where somebody has them at hand: to ask for them takes a millisecond.
        """
        teachers, students = ([shards.local(p) for p in side] for side in followers or self.followers())
        share = torch.full((), 1 - ema, device=self.device)
        move_average(teachers, students, share if finite is None else share * finite)
        self.target_norm.fold(finite=finite)

    def raw_target(self, images: Pixels) -> Float[Tensor, "b n d"]:
        """The teacher's tokens, or the pixels of the patches, before target normalisation."""
        return self.objective.raw_target(self, images)

    # ---- use ---------------------------------------------------------------------------------------------------

    def used_encoder(self, student: bool) -> PatchEncoder:
        """The EMA encoder, or the student. Raises UserError where the weights came without a student."""
        if student and not self.has_student:
            raise UserError("These weights hold the EMA encoder only, no student; leave out --student (student=True).")
        return self.encoder if student else self.target_encoder

    def encode(self, images: Pixels | Tensor, *, student: bool = False) -> Tokens:
        """The EMA encoder's tokens after the final norm, or of `encoder.layer`, [b, n, d], of images of any size.

        Pixels are uint8, or float in [0, 1].
        Raises UserError for pixels of another scale, type or shape, and where there is no student.
        """
        distributed.advance()
        images = checked_pixels(images)
        encoder = self.used_encoder(student)
        return Tokens(encoder.tokens(images.to(self.device)), encoder.grid_of(images))

    def target(self, images: Pixels | Tensor) -> Tokens:
        """The truth in target space: what `predict` is trained to say of these images.

        Raises UserError where there is no predictor, and as `encode` does.
        """
        distributed.advance()
        self.require_predictor()
        images = checked_pixels(images)
        return Tokens(self.target_norm(self.raw_target(images.to(self.device))), self.encoder.grid_of(images))

    def action(self, **changes: float) -> Float[Tensor, " k"]:
        """An action from raw changes, source to target: `brightness=0.3` (factor), `hue=-0.05` (turns),
        `grayscale=1` (the source carries it, undo it). Nothing given is the null action.

        Warns of a change that training never drew. Raises UserError for what the space does not know, and for what no
        untouched image can become; `space.encode` takes that, too.
        """
        action = self.space.encode(**changes)
        action_text.require_possible(self.space, changes)
        for sentence in action_text.beyond_training(self.space, changes):
            warnings.warn(sentence, stacklevel=2)
        return action.to(self.device)

    def predict(self, tokens: Tokens, action: Float[Tensor, " k"] | Float[Tensor, "b k"]) -> Tokens:
        """What the images would look like after the change, at all positions, in target space.

        Raises UserError where there is no predictor, and for another number of actions than of images.
        """
        distributed.advance()
        self.require_predictor()
        if action.ndim > 1 and len(action) not in (1, len(tokens.values)):
            raise UserError(f"{len(action)} actions were given for {len(tokens.values)} images; give one each, or one.")
        action = action.to(self.device).expand(len(tokens.values), -1)
        values = self.predictor(tokens.values, action, grid=tokens.grid)
        if self.settings.predictor.residual:
            values = values.float() + self.target_norm(tokens.values)
        return Tokens(values, tokens.grid)

    @property
    def decodes(self) -> bool:
        """Whether `decode` shows anything."""
        if not self.objective.predicts:
            return False
        blank = torch.zeros(1, 1, self.objective.output_width, device=self.device)
        return self.decoder is not None or self.objective.shown(self, blank, (1, 1)) is not None

    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 h w"]:
        """Tokens in target space (of `predict` or `target`) as pictures in [0, 1], whose sides are those of the grid
        times the patch size.

        Blur in them may be the decoder's: look at `decode(target(images))` beside `decode(predict(...))`. Raises
        UserError where there is no predictor, or no decoder was fitted.
        """
        self.require_predictor()
        values = tokens.values.float()
        pictures = self.objective.shown(self, values, tokens.grid)
        if pictures is None:
            if self.decoder is None:
                raise UserError(
                    "No pixel decoder was fitted to this model; fit one with iwm decoder RUN and load it again."
                )
            pictures = self.decoder.to(values.device)(values, tokens.grid)
        return pictures.clamp(0, 1)

    @torch.no_grad()
    def infer_action(
        self, images: Pixels, changed_images: Pixels, search: Search | None = None
    ) -> Float[Tensor, "b k"]:
        """The action that turned the images into the changed ones, by search (`iwm.model.action_search`).

        By default what the images may carry and the changed ones do not is sought too.
        """
        search = search or Search()
        tokens = self.encode(images)
        still = self.predict(tokens, self.space.null(1, self.device)[0]).values.float()
        change = self.target(changed_images).values.float() - self.target(images).values.float()

        def energy(rows: Int64[Tensor, " c"], actions: Float[Tensor, "c k"]) -> Float[Tensor, " c"]:
            rows = rows.to(self.device)
            guess = self.predict(Tokens(tokens.values[rows], tokens.grid), actions).values.float()
            difference = guess - still[rows] - change[rows]
            if search.pooled:
                difference = difference.mean(dim=1, keepdim=True)
            return difference.square().mean(dim=(1, 2)).to(actions.device)

        return descend(energy, self.space, len(images), search).to(self.device)


def move_average(teachers: list[Tensor], students: list[Tensor], share: Float[Tensor, ""]) -> None:
    """teacher + share (student - teacher), in place; `share` is on their device, so that nobody waits for it.

    A GPU does it in three calls for all tensors together. A lerp by a tensor that belongs to all would be a launch for
    each of them.
    """
    if not teachers:  # an encoder that stands still
        return
    if teachers[0].is_cuda:
        _move_together(teachers, students, share)
    else:
        torch._foreach_lerp_(teachers, students, [share] * len(teachers))  # pyright: ignore[reportPrivateImportUsage]


def _move_together(teachers: list[Tensor], students: list[Tensor], share: Float[Tensor, ""]) -> None:
    ways = torch._foreach_sub(students, teachers)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(ways, share)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(teachers, ways)  # pyright: ignore[reportPrivateImportUsage]


def for_tasks(settings: config.Config, actions: int, grid: Grid, depth: int = 0) -> Predictor:
    """A fresh predictor of `depth` blocks (0: all) as tasks use it: one that predicts no tokens (pixels, or a change)
    without its last Linear, so that heads see its own."""
    own = replace(settings.predictor, depth=depth or settings.predictor.depth)
    output = None if objective_of(settings).tasks_read_predictions else 0
    return Predictor(own, settings.encoder.width, actions, grid, output)


def seen_width(settings: config.Config, predicts: bool) -> int:
    """Width of the tokens a task's head sees: the encoder's, or those `for_tasks` says (`predicts`)."""
    own = predicts and not objective_of(settings).tasks_read_predictions
    return settings.predictor.width if own else settings.encoder.width
