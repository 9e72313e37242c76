"""What the verbs of the command line can be told: options, defaults and help. `imagine`, `infer`, `look` and `undo`
have theirs beside what they do. No PyTorch is imported here, so `--help` and complaints come at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, cast

from tyro.conf import Positional, UseAppendAction, arg

from iwm import config
from iwm.sweeps.protocol import Axes, Protocol

T = TypeVar("T")


def part(options: Any, kind: Callable[..., T], **others: Any) -> T:
    """Such settings, filled from the options of the same names."""
    there = {key.name: getattr(options, key.name) for key in fields(cast(Any, kind)) if hasattr(options, key.name)}
    return kind(**{**there, **others})


@dataclass(frozen=True)
class Sweep(Protocol, Axes):  # fields come from the last base first
    settings: Annotated[config.Config, arg(name="")] = field(default_factory=lambda: config.Config(recipe=""))
    recipes: str = ""
    """Further recipes, one run each as they are, with the same other settings."""
    jobs: int = 1
    """Runs at once, each as a process of its own with its share of the cores."""
    list: bool = False
    """Print one command for each run, for a cluster; the same command without --list collects."""
    cell: str = ""
    """Do this run only."""


@dataclass(frozen=True)
class Source:
    """Which run is measured, or learns, on which images."""

    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    data: str
    """A labelled source."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""


@dataclass(frozen=True)
class Measured:
    """What every number depends on or goes by."""

    seed: int = 0
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


@dataclass(frozen=True)
class World(Measured, Source):
    data: str
    """Source of the held-out images."""
    images: int = 64
    bank: int = 256
    frozen_random_twin: bool = False
    """Also train and rank a twin with a frozen random encoder: same predictor, same budget."""


@dataclass(frozen=True)
class Probe(Measured, Source):
    run: Positional[str]
    """A run folder, exported weights, hf-hub:user/name, or timm:NAME[,weights=PATH]."""
    kind: Literal["knn", "linear", "attentive"] = "linear"
    k: int = 20
    """Neighbours of kNN."""
    pooling: Literal["mean", "max"] = "mean"
    """How kNN and linear make one vector of the patch tokens."""
    standardise: bool = True
    """Linear: on features of zero mean and unit deviation (a BatchNorm without affine)."""
    student: bool = False
    """Probe the student instead of the EMA encoder."""
    layer: int = 0
    """Block whose tokens are taken, from 1; 0: the last one, after the final norm."""
    size: int = 0
    """Side of the pictures; 0: the run's."""
    baselines: bool = True
    """Also a random encoder and raw pixels."""
    encoder: str = ""
    """Another encoder beside this one, through the same probe: timm:NAME[,weights=PATH] or a RUN."""


@dataclass(frozen=True)
class Learning(Measured):
    """What `iwm finetune`, `efficiency`, `multitask` and `segment` have in common."""

    epochs: int = 20
    batch_size: int = 128
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of the head; the best on a tenth of train is taken."""
    ratios: tuple[float, ...] = (0.1, 1.0)
    """Learning rate of predictor or encoder as a multiple of the head's; tried with every one."""
    views: int = 4
    """Pictures an image is trained on: itself and views - 1 random crops, drawn once; 0: a new one every epoch."""
    student: bool = False
    """Learn on the student instead of the EMA encoder."""
    size: int = 0
    """Side of the pictures; 0: the run's."""

    def settings(self, kind: Callable[..., T]) -> T:
        """Such settings (`iwm.evaluation.tasks.tuning.Tuning`), filled from the options of the same names."""
        from iwm.evaluation.tasks.fitting import Schedule

        return part(self, kind, schedule=part(self, Schedule))


@dataclass(frozen=True)
class Tuning(Learning, Source):
    """What `iwm finetune` and `iwm efficiency` have in common."""

    augment: Literal["crops", "timm"] = "crops"
    """Random crops, or those with timm's RandAugment (m9 mstd0.5 inc1) and random erasing (0.25)."""
    mixup: float = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0: none."""
    smoothing: float = 0.0
    """Label smoothing."""
    drop_path: float = 0.0
    """Stochastic depth of the parts that learn."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then used; 0: none."""
    queries: Literal["all", "one"] = "all"
    """What the predictor is asked for: all positions, or the one in the middle."""
    action: Literal["null", "random"] = "null"
    """The action the predictor is told in training."""


@dataclass(frozen=True)
class Finetune(Tuning):
    train: str = "predictor"
    """predictor, head, encoder, both, or last-K (the last K encoder blocks)."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    depth: int = 0
    """Blocks of the predictor that are kept, from the first; 0: all."""
    start: str = ""
    """train both: folder of a finished predictor finetuning; made first where not given."""
    baselines: bool = True
    """Also the same training with nothing pretrained, and raw pixels."""


@dataclass(frozen=True)
class Efficiency(Tuning):
    depths: tuple[int, ...] = ()
    """Numbers of predictor blocks; by default one, half and all of them."""
    blocks: tuple[int, ...] = ()
    """Numbers of last encoder blocks; by default 1, 2 and 4."""


@dataclass(frozen=True, kw_only=True)
class Multitask(Learning):
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    task: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S, a labelled source under a name of yours; once for each of 2 to 8 tasks."""
    val: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S2, source of the images a task is reported on; by default the source's own."""
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    epochs: int = 20
    """Passes over all tasks' images together; the batch is split evenly, so small tasks are seen more often."""
    batch_size: int = 128
    """Images of a step, of all tasks together."""


@dataclass(frozen=True)
class Segment(Learning, Source):
    data: str
    """images/ and annotations/ (PNG masks) in every split, an .npz with images and masks, or sample-objects."""
    train: Literal["head", "predictor", "encoder", "both"] = "head"
    """What learns; both is encoder and predictor end to end."""
    head: Literal["linear", "upernet"] = "upernet"
    predictor: Literal["pretrained", "random"] = "pretrained"
    """Where the predictor starts."""
    ignore_index: int = 255
    """Mask value of pixels that are neither learned nor counted; -1 for none."""
    batch_size: int = 16
    views: int = 4
    """Crops an image is trained on while the encoder is frozen, drawn once; 0: fresh ones every epoch."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest scale of the crops."""
    start: str = ""
    """train both: folder of a finished predictor segmentation; made first where not given."""
    baselines: bool = True
    """Also the same training with nothing pretrained."""
    size: int = 0
    """Side of crops and windows; 0: the images' shorter side, at most 512 and at most 4 times the run's."""


@dataclass(frozen=True)
class Predict:
    run: Positional[str]
    """The folder of a finetuned classifier, or a run that has exactly one."""
    images: Positional[str]
    """A source of images, or one image file."""
    out: str = "predictions.csv"
    task: str = ""
    """Which of the tasks, for weights of `iwm multitask`."""
    speed: config.Speed = field(default_factory=config.Speed)


@dataclass(frozen=True)
class Runs:
    runs: Positional[tuple[str, ...]]
    """Run folders."""


@dataclass(frozen=True)
class OneRun:
    run: Positional[str]
    """A run folder."""


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Demo:
    out: str = ""
    """Folder of the run; by default runs/demo, or runs/demo-quick."""
    quick: bool = False
    """A minute's run that shows every step; too short to learn much."""
    seed: int = 0
