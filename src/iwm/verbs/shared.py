"""Options that several verbs have in common."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from iwm import config
from iwm.runtime import errors
from iwm.runtime.bounds import Area, AtLeast, Fraction, Positives, Seed, check
from iwm.runtime.errors import UserError
from iwm.runtime.fields import with_paths_as_text

LEARNING_RATES = (3e-4, 1e-3, 3e-3)
"""The grid of learning rates of whatever head is trained."""
RATIOS = (0.1, 1.0)
"""The grid of what was there before the head: its learning rate as a multiple of the head's."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The root of all options, where checks that cooperate end."""

    def __post_init__(self) -> None:
        """Raises UserError for what makes no sense."""
        with_paths_as_text(self)
        check(self, "--")


@dataclass(frozen=True, kw_only=True)
class OfAll:
    """What every verb takes on the command line, whatever it does; the dispatch takes these off its words."""

    json: FlagCreatePairsOff[bool] = False
    """Print the result as JSON on standard output, all else on standard error."""
    quiet: FlagCreatePairsOff[bool] = False
    """Print the result and warnings only: no progress, no remarks."""
    actions: str = ""
    """PATH.py:NAME, transformations of your own (docs/actions.md)."""


@dataclass(frozen=True, kw_only=True)
class Manners(OfAll):
    """The same, and what the verbs take that train."""

    dry_run: FlagCreatePairsOff[bool] = False
    """Of verbs that train: print what would be done and what it costs, and write nothing."""


def manners_of(trains: object) -> type[OfAll]:
    """What a verb takes beside its own options; `trains`: whether it can say what its training would cost."""
    return Manners if trains else OfAll


@dataclass(frozen=True, kw_only=True)
class OneRun(Options):
    """Which run."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder, exported weights, hf-hub:user/name, or demo, the model in the package."""


def check_blocks(layer: int, layers: int | Literal["all"]) -> None:
    """Raises UserError for a number of last blocks that is none, and where one block and the last ones are given."""
    if layers != "all" and layers < 0:
        raise UserError(f"--layers {layers}: give 1 or more, or all.")
    if layers and layer:
        raise UserError(f"--layer {layer} takes one block and --layers {layers} the last ones; give one of the two.")


@dataclass(frozen=True, kw_only=True)
class Published(Options):
    """What leaves this machine, and what its model card says."""

    small: bool = False
    """No student, and all but the target statistics in bf16: a quarter of the bytes, rounded (safetensors, hub)."""
    license: str = ""
    """Licence of the weights as the hub calls it, for example apache-2.0 or cc-by-4.0, for the model card (hub)."""
    photos: Annotated[int, AtLeast(0)] = 4
    """Photos of the package whose imagined changes the model card shows, at most 16; 0: no strip (hub)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.license and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.license):
            raise UserError(
                f"--license '{self.license}' is no name of a licence as the hub calls it; write apache-2.0, cc-by-4.0, "
                "mit or other."
            )
        if self.photos > 16:
            raise UserError(f"--photos {self.photos} are too many for a model card; give at most 16.")


@dataclass(frozen=True, kw_only=True)
class Source(OneRun):
    """Which run is measured, or learns, on which images."""

    data: str
    """A labelled source."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""


@dataclass(frozen=True, kw_only=True)
class Computation(Options):
    """On what device, how precisely and how fast."""

    speed: config.Speed = field(default_factory=config.Speed)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.speed, "--speed.")


@dataclass(frozen=True, kw_only=True)
class Measured(Computation):
    """What every number depends on or goes by."""

    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""
    out: str = ""
    """Folder of the results; by default the local run's own, and ./iwm-eval/NAME for another RUN."""


@dataclass(frozen=True, kw_only=True)
class Schedule(Options):
    """How a classifier is trained: AdamW, linear warm-up, cosine to zero."""

    epochs: Annotated[int, AtLeast(1)] = 20
    """Passes over the training images; with several tasks, over the images of all."""
    search_epochs: Annotated[int, AtLeast(0)] = 0
    """Length of the trials that choose the learning rate; 0: a quarter of the epochs."""
    search_images: Annotated[int, AtLeast(0)] = 0
    """Training images of these trials, drawn by the seed; 0: all but the tenth."""
    batch_size: Annotated[int, AtLeast(1)] = 128
    """Images of a step; with several tasks, of all tasks together."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.05
    """Weight decay of AdamW."""
    warmup: Annotated[float, Fraction()] = 0.1
    """Share of the steps in which the learning rate rises."""
    smoothing: Annotated[float, Fraction(below_one=True)] = 0.0
    """Label smoothing."""
    mixup: Annotated[float, AtLeast(0)] = 0.0
    """Alpha of mixup, which mixes pixels and labels of two images by a share from Beta(alpha, alpha); 0: none."""
    cutmix: Annotated[float, AtLeast(0)] = 0.0
    """Alpha of cutmix, which pastes a box of another image; with mixup one of both is drawn for each batch; 0: none."""
    ema: Annotated[float, Fraction(below_one=True)] = 0.0
    """Decay per step of a moving average of the weights, which is the result then; 0: none."""
    clip: Annotated[float, AtLeast(0)] = 1.0
    """Largest gradient norm; 0: no clipping."""

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def require_no_mixing(self, what: str) -> None:
        """Raises UserError when pictures are to be mixed that are none, or have no label as a whole."""
        if self.mixes:
            raise UserError(f"--mixup and --cutmix mix whole pictures and their labels, {what}; leave them out.")

    @property
    def search(self) -> int:
        """Epochs of a trial."""
        return self.search_epochs or max(1, self.epochs // 4)


WAYS = ("predictor", "head", "encoder", "both", "last-1")
"""What finetuning can train; last-K for any K."""


@dataclass(frozen=True, kw_only=True)
class Tuning(Options):
    """What finetuning for any task depends on, beside the run and the data."""

    train: str = "predictor"
    """predictor, head, encoder, both, or last-K (the last K encoder blocks)."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    student: bool = False
    """Take the student instead of the EMA encoder."""
    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""
    lrs: Annotated[tuple[float, ...], Positives()] = LEARNING_RATES
    """Learning rates of the head; the best on a tenth of the training images is taken."""
    ratios: Annotated[tuple[float, ...], Positives()] = RATIOS
    """Learning rates of predictor or encoder over the head's; all pairs are tried."""
    layer_decay: Annotated[float, Fraction()] = 0.65
    """Learning rate of an encoder block over that of the next block, where the encoder is trained; always 1 for the
    control with nothing pretrained."""
    depth: Annotated[int, AtLeast(0)] = 0
    """Blocks of the predictor that are kept, from the first; 0: all."""
    views: Annotated[int, AtLeast(0)] = 4
    """Views of each training image, made once: the image itself and random crops. 1: no augmentation; 0: a new crop in
    every epoch, which a frozen encoder must encode every time."""
    flip: Annotated[float, Fraction()] = 0.5
    """Probability that a crop is mirrored."""
    schedule: Annotated[Schedule, arg(name="")] = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.last_blocks

    @property
    def last_blocks(self) -> int:
        """K of last-K; 0 for every other way. Raises UserError when `train` is none of them."""
        last = re.fullmatch(r"last-([1-9]\d*)", self.train)
        if not last and self.train not in WAYS:
            raise UserError(f"There is no way to train '{self.train}'; {errors.did_you_mean(self.train, WAYS)}")
        return int(last.group(1)) if last else 0

    @property
    def augmentation(self) -> str:
        """What an image is trained on, in words: the same for every way to train."""
        if self.views == 1:
            return "none"
        return f"{self.views} views of an image, drawn once" if self.views else "a fresh view of an image every epoch"

    @property
    def uses_predictor(self) -> bool:
        return self.train in ("predictor", "both")

    @property
    def moves_encoder(self) -> bool:
        return self.train not in ("predictor", "head")


@dataclass(frozen=True, kw_only=True)
class Continuation(Tuning):
    """Finetuning that may go on from a finished one."""

    start: str = ""
    """train both: folder of a finetuned predictor to start from; without it, one is finetuned first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start and self.train != "both":
            raise UserError(
                f"--start {self.start} is where --train both starts; leave it out with --train {self.train}."
            )


@dataclass(frozen=True, kw_only=True)
class Classification(Tuning):
    """What finetuning for classification depends on."""

    crop_area: Annotated[tuple[float, float], Area()] = (0.5, 1.0)
    """Area of the random crops, as a fraction of the image."""
    queries: Literal["all", "one"] = "all"
    """Patches that the predictor predicts: all, or the one in the middle."""
    action: Literal["null", "random"] = "null"
    """The action the predictor is told in training."""
    drop_path: Annotated[float, Fraction(below_one=True)] = 0.0
    """Rate of stochastic depth in the last block that is trained; earlier blocks have less."""
    augment: Literal["crops", "timm"] = "crops"
    """Random crops, or those with timm's RandAugment (m9 mstd0.5 inc1) and random erasing (0.25)."""

    @property
    def augmentation(self) -> str:
        words = ["RandAugment and erasing"] if self.augment == "timm" and self.views != 1 else []
        words += [f"{name} {getattr(self.schedule, name):g}" for name in ("mixup", "cutmix") if self.schedule.mixes]
        return ", ".join([super().augmentation, *words])

    @property
    def reuses_tokens(self) -> bool:
        """Whether a picture gives the same tokens every time it is shown."""
        return not self.moves_encoder and self.views > 0 and not self.schedule.mixes

    @property
    def words(self) -> list[str]:
        """What is trained, and how it differs from the plain way, for the name of the result."""
        predicts = self.uses_predictor
        return [
            word
            for word, matters in (
                (self.train, True),
                (self.predictor, predicts),
                (f"depth{self.depth}", predicts and self.depth),
                ("one-query", predicts and self.queries == "one"),
                ("random-action", predicts and self.action == "random"),
                ("student", self.student),
                (self.augment, self.augment != "crops"),
                (f"seed{self.seed}", self.seed),
            )
            if matters
        ]
