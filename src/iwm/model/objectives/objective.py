"""The interface of an objective: what a model is trained to do, and everything that depends on it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from iwm.actions.action_space import ActionSpace
from iwm.actions.views import Views
from iwm.config import Config
from iwm.model.encoder import PatchEncoder
from iwm.model.masks import Masks
from iwm.model.objectives.target_norm import TargetNorm
from iwm.model.predictor import Predictor
from iwm.model.vit import Grid
from iwm.runtime.errors import UserError

Pixels = Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
"""Images of any size: uint8, or float in [0, 1]."""


class ModelParts(nn.Module):
    """What an objective sees of a world model: student f, EMA teacher f-bar, predictor p and target normalisation.

    An objective without a predictor has no `predictor`; modules of its own lie beside these under names of its choice.
    """

    space: ActionSpace
    encoder: PatchEncoder
    target_encoder: PatchEncoder
    predictor: Predictor
    target_norm: TargetNorm


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
    invariance: Float[Tensor, ""] | None = None
    """The last block's invariance term before its weight, where objective.invariance_weight asks for it."""


@dataclass(frozen=True)
class Examination:
    """A batch that health is measured on, and what the model, in eval mode, makes of it."""

    views: Views
    masks: Masks
    output: Output
    raw: Float[Tensor, "b n r"]
    """`raw_target` of the target views."""
    source: Float[Tensor, "b n r"] | None
    """`raw_target` of the source views, where the objective `predicts`."""
    tokens: Float[Tensor, "b n d"]
    """The EMA encoder's tokens of the target views."""


class Objective(ABC):
    """What a model is trained to do. `Latent`, `Pixels` and `Joint` are the built-in ones.

    One that predicts the target patch by patch inherits from `iwm.model.objectives.PatchPrediction` and states what the
    targets are (`raw_target`, `output_width`); any other inherits from this class. An objective holds settings only.
    Its weights belong to the model, which is passed to the methods. In shapes, b is images, n patches, q queried
    patches, d = encoder.width and k components of the action. `iwm.register_objective(CLASS)` lets `objective.kind`
    name it. Register it again before weights trained with it are loaded: code never travels with weights.
    """

    name: ClassVar[str] = ""
    """What `objective.kind` says."""
    noun: ClassVar[str] = ""
    """What a model trained so is called, with its article: 'a joint embedding'."""
    predicts: ClassVar[bool] = True
    """Whether there is a predictor: a world model to ask and finetune."""
    learned_targets: ClassVar[bool] = False
    """Whether `raw_target` gives the teacher's tokens, which may collapse, and of several layers where
    objective.target_layers says so. Health looks at them; otherwise at the EMA encoder's tokens."""
    predicts_tokens: ClassVar[bool] = True
    """Whether predictions are tokens like the encoder's, which a task's head can read; otherwise tasks read the
    predictor's own tokens, before its last Linear."""

    invariant_block: ClassVar[bool] = False
    """Whether objective.invariance_weight can add an invariance term at the encoder's last block."""

    shares_targets: ClassVar[bool] = False
    """Whether several sources of an image may share its target (masks.sources): `views` and `masks` then hold s sources
    to b targets."""

    any_grid: ClassVar[bool] = False
    """Whether views may have another patch grid than at data.image_size (data.start_size): what is asked of positions
    then goes by the grid of the views."""

    unread: ClassVar[tuple[str, ...]] = ()
    """Settings that change nothing here, as 'group.name': training says so of those that differ from the recipe's."""

    # The verdict on a line of metrics.
    baseline: ClassVar[str]
    """Key, in the numbers of `health`, of the loss of a model that knows too little."""
    ignorance: ClassVar[str]
    """What that model knows, after 'knowing'."""
    learner: ClassVar[str]
    """What has learned nothing where the loss is no better."""
    squared: ClassVar[bool] = False
    """Whether the loss is a squared error, so that 1 - loss / baseline is the share that is explained."""
    judged: ClassVar[tuple[str, ...]] = ()
    """Further numbers of `health` that a verdict needs."""
    mend_collapse: ClassVar[str] = "a higher optim.ema"
    """What to try where targets collapse, after 'try'."""
    mend_rank: ClassVar[str] = ""
    """What to try where features span few directions, after a comma or semicolon; empty: nothing."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings

    # ---- settings ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError for settings that do not go with this objective, so that none is passed over in silence."""
        if not self.learned_targets and self.settings.objective.target_layers != 1:
            raise UserError(
                f"objective.target_layers averages latent targets, objective.kind {self.name} has none; give 1."
            )
        own = {"predictor.residual": self.settings.predictor.residual}
        own["objective.target_norm change"] = self.settings.objective.target_norm == "change"
        wrong = next((name for name, chosen in own.items() if chosen and not self.learned_targets), None)
        if wrong:
            raise UserError(f"{wrong} is of latent targets, objective.kind {self.name} has none; leave it out.")
        if self.settings.masks.sources > 1 and not self.shares_targets:
            raise UserError(
                f"masks.sources share the target of a prediction of patches, objective.kind {self.name} is none; give "
                "1."
            )
        masks, share = self.settings.masks, self.settings.objective.whole_gradient
        if share < 1 and (masks.sampler == "none" or not 0 < masks.whole < 1):
            raise UserError(
                f"objective.whole_gradient {share:g} sets the steps of masks.whole apart from those that drop patches; "
                "give 1, or masks.whole between 0 and 1 and a masks.sampler."
            )
        if self.settings.data.start_size and not self.any_grid:
            raise UserError(
                f"data.start_size shows objective.kind {self.name} smaller patch grids, which it does not say it takes "
                "(any_grid = True); give 0."
            )
        if self.settings.objective.invariance_weight and not self.invariant_block:
            raise UserError(
                f"objective.invariance_weight stands beside a prediction of patches, objective.kind {self.name} is "
                "none; give 0."
            )

    @classmethod
    def summary(cls, values: Mapping[str, Any]) -> str:
        """The model beside the encoder, for a report. `values` are flat settings, of any age ('predictor.depth')."""
        return cls.noun or f"objective {cls.name}"

    @property
    def tasks_read_predictions(self) -> bool:
        """Whether a task's head reads what the predictor says: tokens like the encoder's, and no change of them."""
        return self.predicts_tokens and not self.settings.predictor.residual

    @property
    def size(self) -> str:
        """Size of what is trained beside the encoder, for a table: DEPTHxWIDTH of the predictor."""
        return f"{self.settings.predictor.depth}x{self.settings.predictor.width}"

    # ---- training ----------------------------------------------------------------------------------------------

    @property
    def output_width(self) -> int:
        """Numbers the predictor says of a patch; the width of target space."""
        return self.settings.encoder.width

    def modules(self) -> dict[str, nn.Module]:
        """Modules of its own by their name in the model, made after encoder and predictor."""
        return {}

    def normalisation(self) -> TargetNorm:
        """The target normalisation."""
        return TargetNorm(self.settings.objective, self.output_width)

    def raw_target(self, model: ModelParts, images: Pixels) -> Float[Tensor, "b n r"]:
        """What there is to say of every patch of the images, before normalisation; by default the teacher's tokens."""
        return model.target_encoder.tokens(images, average=self.settings.objective.target_layers)

    def shown(self, model: ModelParts, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b 3 h w"] | None:
        """The pictures, values around [0, 1], that tokens in target space say by themselves; None where a decoder must
        be fitted to see them (`iwm decoder`)."""
        return None

    @abstractmethod
    def forward(self, model: ModelParts, views: Views, masks: Masks) -> Output:
        """One micro-batch: the loss and what it compares. No gradient reaches the target."""

    def calibrate(self, model: ModelParts, views: Views) -> None:  # noqa: B027 - most have nothing to calibrate
        """Let the target statistics see a micro-batch before the first step."""

    def averages(self, model: ModelParts) -> Sequence[tuple[nn.Module, nn.Module]]:
        """(teacher, student) pairs that the EMA moves beside the encoder's."""
        return ()

    # ---- health ------------------------------------------------------------------------------------------------

    @abstractmethod
    def health(self, model: ModelParts, seen: Examination) -> dict[str, float]:
        """Numbers of its own for a line of metrics, `baseline` among them, without gradients."""

    @classmethod
    def findings(cls, line: Mapping[str, Any]) -> list[str]:
        """Sentences about what is ill in a line of metrics, beyond collapse and a loss no better than the baseline."""
        return []

    @classmethod
    def remarks(cls, line: Mapping[str, Any]) -> list[str]:
        """Sentences for a healthy line, after those on loss and features."""
        return []

    @classmethod
    def instruments(cls, line: Mapping[str, Any]) -> list[str]:
        """Sentences on its further numbers, whether the line is healthy or ill."""
        return []

    # ---- cost --------------------------------------------------------------------------------------------------

    @abstractmethod
    def parameter_count(self, actions: int) -> int:
        """Trained parameters beside the encoder's, for an action of so many components."""

    @abstractmethod
    def step_flops(self, actions: int) -> float:
        """Floating-point operations of one image's share of a training step."""
