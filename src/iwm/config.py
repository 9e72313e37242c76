"""Every setting, as frozen keyword-only dataclasses in three groups.

*What is learned*: data, actions, masks, encoder, predictor, objective, optim. *Speed*: how precisely and how fast,
never what. *Run*: where to write, seed, logging, resuming. Defaults are the paper's (ImageNet, ViT-B/16); small-data
values live in `recipe_book.py`. The bounds of a setting stand beside it (`iwm.runtime.bounds`).
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Fixed, Positional, Suppress, arg

from iwm.runtime import renames, settings_file
from iwm.runtime.bounds import Above, Area, AtLeast, DeviceName, Finite, Fraction, Rising, Seed, check
from iwm.runtime.errors import UserError
from iwm.runtime.fields import flatten, from_dict, to_dict, with_paths_as_text
from iwm.runtime.renames import Rename

T = typing.TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which pictures, at which size."""

    source: str = ""
    """One or several sources, comma-separated: a folder, .zip, .npz, `sample` or `sample-objects`."""
    image_size: Annotated[int, AtLeast(1)] = 224
    """Side of the square crops, pixels."""
    start_size: Annotated[int, AtLeast(0)] = 0
    """Smaller side of the crops in the first `start_share` of the steps, where positions are resampled. Actions keep
    their meaning, and health is measured at image_size. 0: image_size from the beginning."""
    start_share: Annotated[float, Fraction()] = 0.5
    """Share of the steps, the first ones, whose crops have start_size."""
    crop_area: Annotated[tuple[float, float], Area()] = (0.3, 1.0)
    """Area of the random resized crop, as a fraction of the image."""
    flip: Annotated[float, Fraction()] = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        with_paths_as_text(self)


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The change between source and target (paper appendix A). The set photometric has `brightness` to `blur_sigma`."""

    set: str = "photometric"
    """photometric (the paper's), camera (gamma, white balance, noise, JPEG), or PATH.py:NAME, transformations of your
    own."""
    level: Literal["jitter", "destructive", "strong"] = "destructive"
    """jitter: no destructive transformation; destructive: the default; strong: jitter 0.8/0.8/0.8/0.2 as well."""
    jitter_probability: Annotated[float, Fraction()] = 0.8
    """Probability that a view is jittered at all."""
    brightness: Annotated[float, AtLeast(0)] = 0.4
    """Largest deviation of the factor from 1 (torchvision's meaning)."""
    contrast: Annotated[float, AtLeast(0)] = 0.4
    """Largest deviation of the factor from 1."""
    saturation: Annotated[float, AtLeast(0)] = 0.2
    """Largest deviation of the factor from 1."""
    hue: Annotated[float, AtLeast(0)] = 0.1
    """Largest shift, turns."""
    grayscale: Annotated[float, Fraction()] = 0.2
    """Probability, source only."""
    blur: Annotated[float, Fraction()] = 0.2
    """Probability, source only."""
    solarize: Annotated[float, Fraction()] = 0.2
    """Probability, source only."""
    blur_sigma: Annotated[tuple[float, float] | None, Rising()] = None
    """Range of the blur's standard deviation, pixels; None: 0.1-2.0 at 224 px down to 0.4-1.0 at 32 px."""
    jitter_order: Literal["fixed", "random"] = "fixed"
    """fixed: brightness, contrast, saturation, hue; random: one order an image, as torchvision does."""
    clean: Literal["none", "target", "either", "both"] = "none"
    """Which view is always the unchanged crop. target: the target, but for the steps of masks.whole, where the source
    is; either: one of the two, by lot for every image; both: source and target, so that changes are those of the
    targets in the steps of masks.whole alone."""
    source_from: Literal["crop", "target"] = "crop"
    """crop: source and target are jittered independently; target: the source is built on top of the target."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Whether source and target show the same crop, and blur and solarization of independent crops."""

    geometry: Literal["shared", "independent"] = "shared"
    """shared: one crop and flip for both, so that patches correspond; independent: each its own (objective.kind
    joint)."""
    blur: Annotated[tuple[float, float], Fraction()] = (1.0, 0.1)
    """Independent crops: probability of blur on source and target, in place of actions.blur (default: BYOL's)."""
    solarize: Annotated[tuple[float, float], Fraction()] = (0.0, 0.2)
    """Independent crops: probability of solarization on source and target, in place of actions.solarize."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which patches the student does not see, and which are predicted (paper section 3)."""

    blocks: Annotated[int, AtLeast(1)] = 4
    """Number of rectangles; the patches they cover are dropped."""
    block_area: Annotated[tuple[float, float], Area()] = (0.15, 0.2)
    """Area of one rectangle, as a fraction of the image."""
    block_aspect: Annotated[tuple[float, float], Rising()] = (0.75, 1.5)
    """Height over width of a rectangle."""
    predict: Literal["dropped", "all", "visible"] = "dropped"
    """Which patches of the target are predicted: those that were dropped, all, or those that the student sees."""
    queries: Annotated[float, Fraction(above_zero=True)] = 1.0
    """Share of these patches that is predicted in a step, drawn anew for every image; fewer cost less time."""
    whole: Annotated[float, Fraction()] = 0.0
    """Share of the steps whose source is the unchanged crop with all its patches, as `iwm world` shows it later."""
    sources: Annotated[int, AtLeast(1)] = 1
    """How many sources of an image a step shows, each changed and masked by itself. They share one target, which the
    teacher encodes once. optim.batch_size counts images. Steps on whole sources (`whole`) show one."""
    sampler: Literal["exact", "ijepa", "random", "none"] = "exact"
    """exact: rectangles, trimmed or grown so that every image drops equally many patches; ijepa: I-JEPA's published
    sampler, which cuts a batch's masks to its smallest; random: drops a share `ratio` of the patches (MAE); none:
    the student sees every patch."""
    context_area: Annotated[tuple[float, float] | None, Area()] = None
    """ijepa: the student sees only a square block of this area, as a fraction of the image (published: 0.85 1); None:
    it sees all that is not dropped."""
    ratio: Annotated[float, Fraction()] = 0.75
    """Share of the patches that the sampler random drops."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A vision transformer of ours without class token, or, by its name, one of others (docs/any-encoder.md)."""

    name: str = ""
    """An encoder of others: timm:NAME[,weights=PATH] (weights=random: as drawn), or hf-hub:ID. It brings its own
    patch_size, width, depth, heads, mlp_ratio, mean and std. Empty: one of ours."""
    train: str = "all"
    """all; last-K: its last K blocks up to `layer`; none: it stands still, only the predictor is trained."""
    layer: int = 0
    """Block whose tokens the world model sees and predicts, from 1; negative ones count from the end; 0: the last.
    Those behind it learn by objective.invariance_weight only."""
    views: Annotated[int, AtLeast(0)] = 8
    """Views of each crop whose tokens an encoder of others that stands still gives once, before training; 0: encode
    anew in every step."""
    crops: Annotated[int, AtLeast(1)] = 1
    """Crops of each image that are encoded so."""
    architecture: Suppress[Fixed[str]] = ""
    """What timm calls the encoder of others, with its arguments; set by `name`."""
    patch_size: Annotated[int, AtLeast(1)] = 16
    """Side of a patch, pixels."""
    width: Annotated[int, AtLeast(4)] = 768
    """Numbers in a token."""
    depth: Annotated[int, AtLeast(1)] = 12
    """Transformer blocks."""
    heads: Annotated[int, AtLeast(1)] = 12
    """Attention heads of a block."""
    mlp_ratio: Annotated[float, AtLeast(0.1)] = 4.0
    """Hidden width of a block's MLP over the token's width."""
    registers: Annotated[int, AtLeast(0)] = 0
    """Learned tokens that take part in attention beside the patches, and are left out after it (Darcet et al. 2024)."""
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"
    """trunc_normal: standard deviation 0.02 (ViT-B and wider); xavier: keeps the signal at small widths."""
    mean: Annotated[tuple[float, float, float], Finite()] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue that is subtracted from the pixels, in [0, 1]."""
    std: Annotated[tuple[float, float, float], Above(0)] = (0.229, 0.224, 0.225)
    """Standard deviation by which the pixels are then divided."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """The world model: a narrow transformer over context and queries."""

    depth: Annotated[int, AtLeast(1)] = 18
    """Transformer blocks."""
    width: Annotated[int, AtLeast(4)] = 384
    """Numbers in a token inside the predictor."""
    conditioning: str = "feature"
    """How the predictor is told the action: none, sequence or feature (paper section 3.2), adaln (ours), or one of your
    own (docs/classes.md)."""
    mlp_ratio: Annotated[float, AtLeast(0.1)] = 4.0
    """Hidden width of a block's MLP over the token's width."""
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"
    """As the encoder's; xavier also draws the conditioning MLP by He's rule."""
    residual: bool = False
    """Predict the change of the source's own tokens, each in its place, instead of the target's tokens at queries
    (objective.kind latent)."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is predicted (docs/families.md)."""

    kind: str = "latent"
    """latent: the teacher's tokens of the target (IWM, I-JEPA); pixels: the target's patches (MAE, generative world
    models); joint: nothing is predicted, two views of an image are embedded alike (MoCo v3, BYOL); or one of your own
    (docs/classes.md)."""
    target_norm: Literal["token", "batch", "change"] = "token"
    """token: LayerNorm without affine, of pixels MAE's normalisation of each patch; batch: per channel, with running
    statistics; change: per channel in units of how far it is from source to target (latent)."""
    error: Literal["squared", "smooth_l1"] = "squared"
    """latent, pixels: squared error (IWM, MAE), or Huber's with threshold 1 (the published I-JEPA code)."""
    variance: Annotated[float, AtLeast(0)] = 0.0
    """Weight of VICReg's variance term on the student's context tokens, centred at each position (small data)."""
    covariance: Annotated[float, AtLeast(0)] = 0.0
    """Weight of VICReg's covariance term on the same tokens."""
    whole_gradient: Annotated[float, Fraction()] = 1.0
    """Share of the gradient of the steps of masks.whole that reaches the encoder; 0: only the predictor learns in them,
    the encoder does not move."""
    target_layers: Annotated[int, AtLeast(1)] = 1
    """Average the targets over the teacher's last blocks (1: the last block's output after the final norm)."""
    invariance_weight: Annotated[float, AtLeast(0)] = 0.0
    """latent, pixels: weight of a term that makes the last block's mean token alike for source and target (VICReg's);
    with an earlier encoder.layer the dial from equivariant (0) to invariant."""
    invariance: Literal["contrastive", "regression"] = "contrastive"
    """joint: InfoNCE among the images of a batch (MoCo v3), or regression of the other view (BYOL)."""
    temperature: Annotated[float, Above(0)] = 0.2
    """joint, contrastive: what cosine similarities are divided by."""
    projector_width: Annotated[int, AtLeast(1)] = 4096
    """joint: hidden width of projector and predictor MLP."""
    projector_dim: Annotated[int, AtLeast(2)] = 256
    """joint, invariance_weight: width of the embedding that is compared."""
    freeze_patches: bool = False
    """Do not train the student's patch projection (MoCo v3, for stable training of vision transformers)."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser and the schedules (reference: I-JEPA's, stretched by 1.25)."""

    kind: str = "adamw"
    """adamw; muon: the matrices of attention and MLPs are moved by orthogonalised momentum (Jordan et al. 2024), the
    rest by AdamW, learning rate and weight decay mean the same for both; or one of your own (docs/classes.md)."""
    epochs: Annotated[int, AtLeast(1)] = 300
    """Passes over the training images."""
    steps: Annotated[int, AtLeast(0)] = 0
    """Length of training in steps, in place of `epochs`; 0: as many as the epochs take."""
    batch_size: Annotated[int, AtLeast(1)] = 2048
    """Images of a step."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches a step; `batch_size` counts all of them together. Saves memory; the variance and covariance terms,
    where used, are then taken over each micro-batch."""
    lr: Annotated[float, AtLeast(0)] = 1e-3
    """Peak learning rate at `lr_batch` images a step; scaled linearly with the batch size."""
    lr_batch: Annotated[int, AtLeast(1)] = 2048
    """Batch size that the learning rates are stated for."""
    lr_start: Annotated[float, AtLeast(0)] = 2e-4
    """Learning rate at the first step, scaled in the same way."""
    lr_final: Annotated[float, AtLeast(0)] = 1e-6
    """Learning rate at the end of the schedule, scaled in the same way."""
    warmup_epochs: Annotated[float, AtLeast(0)] = 40
    """Epochs in which the learning rate rises to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine: to lr_final along a cosine; constant: it stays, and only in the last
    `decay` share of the training falls to lr_final along a line. Weight decay and EMA change as ever."""
    decay: Annotated[float, Fraction()] = 0.2
    """constant: share of the steps, the last ones, in which the learning rate falls."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.04
    """Weight decay at the first step."""
    weight_decay_final: Annotated[float, AtLeast(0)] = 0.4
    """Weight decay at the end of the schedule."""
    ema: Annotated[float, Fraction()] = 0.996
    """Decay of the teacher, a moving average of the student, at the first step."""
    ema_final: Annotated[float, Fraction()] = 1.0
    """Decay of the teacher at the end of the schedule."""
    stretch: Annotated[float, AtLeast(1)] = 1.25
    """Schedules are this many times longer than training, which stops before their end."""
    betas: Annotated[tuple[float, float], Fraction(below_one=True)] = (0.9, 0.999)
    """Betas of AdamW; Muon's momentum is .95."""
    clip: Annotated[float, AtLeast(0)] = 0.0
    """Largest gradient norm; 0: no clipping."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast and how precisely; what is computed stays the same."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bf16, else fp32."""
    device: Annotated[str, DeviceName()] = "auto"
    """auto (a GPU of NVIDIA's or AMD's where there is one), cpu, cuda, cuda:N, or mps (Apple's)."""
    compile: bool | None = None
    """Compile the transformer blocks with torch.compile; the first step then takes a minute or so. None: on CUDA, for
    encoders from ViT-S on and runs of 5,000 steps and more."""
    checkpoint_blocks: bool = False
    """Keep only the blocks' inputs and compute them again for the gradients: a third more time, a fraction of the
    memory."""
    shard: bool = False
    """Of several processes each keeps a shard of weights, gradients and optimiser state (FSDP2), not all of it (DDP);
    for models that one GPU does not hold (docs/cluster.md)."""
    threads: Annotated[int, AtLeast(0)] = 0
    """Threads of one process on the CPU; 0: all cores this process may use."""
    workers: Annotated[int, AtLeast(-1)] = -1
    """Decoding processes of a streamed source; -1: one less than the cores. Images kept in memory need none."""
    cache: Literal["auto", "memory", "stream", "device"] = "auto"
    """auto: keep decoded images in memory when they fit in a quarter of what is free; device: on the device, if they
    take at most half of what it has free (a CPU: a quarter), and crop them there (docs/gpu.md)."""
    tokens: str = ""
    """Folder of the tokens that an encoder of others gave once (encoder.views); empty: `tokens` beside the run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where to write, how often, from what seed."""

    out: str = ""
    """Folder of the run."""
    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""
    resume: bool = True
    """Go on from the newest valid checkpoint in `out`."""
    log_every: Annotated[int, AtLeast(1)] = 50
    """Steps between lines of metrics.jsonl, each with a health check."""
    probe_every: Annotated[int, AtLeast(1)] = 10
    """Lines of metrics.jsonl between measurements of the online probe (labelled sources only)."""
    save_every: Annotated[int, AtLeast(1)] = 200
    """Steps between checkpoints."""
    keep: Annotated[int, AtLeast(1)] = 2
    """How many of the newest checkpoints are kept."""
    report_to: str = ""
    """Trackers that are sent a copy of metrics and pictures, comma-separated: tensorboard, wandb, trackio, mlflow, or
    one of your own (docs/trackers.md)."""

    def __post_init__(self) -> None:
        with_paths_as_text(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything `iwm pretrain` needs to know."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")] = "custom"
    """Name of a recipe (see `iwm recipes`), from which all settings start."""
    init: str = ""
    """Start from these weights: a RUN, timm:NAME[,weights=PATH], or a timm model of the hub, hf-hub:ID."""
    data: Data = field(default_factory=Data)
    actions: Actions = field(default_factory=Actions)
    views: Views = field(default_factory=Views)
    masks: Masks = field(default_factory=Masks)
    encoder: Encoder = field(default_factory=Encoder)
    predictor: Predictor = field(default_factory=Predictor)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    speed: Speed = field(default_factory=Speed)
    run: Annotated[Run, arg(name="")] = field(default_factory=Run)

    def __post_init__(self) -> None:
        with_paths_as_text(self)

    @staticmethod
    def upgraded(values: dict[str, Any]) -> dict[str, Any]:
        """Plain settings of any age as they are called today."""
        return renames.in_file(values, RENAMED)


RENAMED = {
    "optim.freeze_encoder": Rename("encoder.train", since="0.1", values={False: "all", True: "none"}),
}
"""Every setting that had another name, with what it is called now (CONTRIBUTING.md, "A setting gets another name")."""


def check_bounds(config: Config) -> None:
    """Check that numbers make sense. Raises UserError naming the first setting that does not."""
    for group in dataclasses.fields(config):
        settings = getattr(config, group.name)
        if dataclasses.is_dataclass(settings):
            check(settings, f"{group.name}.")


LATER = (
    *("actions.clean", "data.start_share", "data.start_size", "encoder.architecture", "encoder.crops"),
    *("encoder.layer", "encoder.name", "encoder.registers", "encoder.train", "encoder.views", "masks.context_area"),
    *("masks.sources", "objective.error", "objective.invariance_weight", "objective.whole_gradient", "optim.decay"),
    *("optim.schedule", "optim.steps", "predictor.residual", "run.report_to"),
)
"""Settings that came after the first results. At their default they are no part of what a sweep is recognised by, so
that older sweeps go on."""


def save(config: Config, path: Path) -> None:
    """Write a config.yaml, whole or not at all."""
    settings_file.write(to_dict(config), path)


def load(path: Path) -> Config:
    """Read a config.yaml. Raises UserError when it is missing, not YAML, has unknown settings or not all of a run's: of
    the others nobody could say whether the recipe's or the paper's are meant."""
    values = settings_file.read(path)
    settings = from_dict(Config, values)
    names = {*flatten(Config.upgraded(values)), *LATER, "optim.kind"}  # older runs lack these, and were at the default
    missing = sorted(name for name in flatten(to_dict(settings)).keys() - names if not name.startswith("speed."))
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} settings that the config.yaml of a run has, {missing[0]} first; give a recipe"
            " and what differs from it as options: iwm pretrain RECIPE --optim.epochs 3."
        )
    return settings
