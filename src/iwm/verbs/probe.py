"""What does the encoder know: kNN, linear, attentive or instance probe, beside a random encoder and raw pixels."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Fixed, Positional, Suppress, arg

from iwm.runtime.bounds import AtLeast, Positives, Seed
from iwm.runtime.errors import UserError
from iwm.verbs.shared import LEARNING_RATES, Measured, Options, Schedule, Source, check_blocks

GALLERY = 1000
"""Images of the instance probe unless its options say otherwise."""
L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of the linear probe's penalty, unless its options name others. If the best of this grid is its weakest or
strongest, further ones are tried; of a grid that the options name, none. It stands here, among a result's settings."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Options):
    """What a probe's numbers depend on, beside the encoder and the data."""

    kind: str = "linear"
    """knn, linear, attentive, or instance: the same image found again, which needs no labels."""
    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""
    k: Annotated[int, AtLeast(1)] = 20
    """Neighbours of kNN."""
    temperature: Suppress[Fixed[Annotated[float, Positives()]]] = 0.07
    """kNN: cosine similarities are divided by it."""
    pooling: Literal["mean", "max", "2x2"] = "mean"
    """How kNN and linear make one vector of the patch tokens; 2x2: means of the four quarters, side by side."""
    standardise: bool = True
    """Linear: scale features to zero mean and unit deviation (a BatchNorm without affine)."""
    l2: Suppress[Fixed[Annotated[tuple[float, ...], Positives()]]] = L2
    """Linear: strengths of the penalty; the best on held-out tenths of train is taken. Where that is the weakest or the
    strongest, further ones are tried, from 1e-8 to 1e2, unless a grid of your own is given."""
    lrs: Suppress[Fixed[Annotated[tuple[float, ...], Positives()]]] = (*LEARNING_RATES, 1e-2, 3e-2)
    """Attentive: learning rates; the best on a tenth of train is taken."""
    schedule: Suppress[Fixed[Annotated[Schedule, arg(name="")]]] = field(default_factory=Schedule)
    """Training of the attentive probe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.schedule.require_no_mixing("and a probe sees features")


@dataclass(frozen=True, kw_only=True)
class Probe(ProbeSettings, Measured, Source):
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder, exported weights, hf-hub:user/name, timm:NAME[,weights=PATH], or demo, the model in the package."""
    data: str
    """A source, labelled unless --kind is instance."""
    student: bool = False
    """Probe the student instead of the EMA encoder."""
    layer: int = 0
    """Number of the block whose tokens are probed, from 1; 0: the last, after the final norm."""
    layers: int | Literal["all"] = 0
    """The last K blocks, or all, side by side, each LayerNormed and pooled (I-JEPA's protocol); the last block alone is
    reported too. 0: one block."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the pictures; 0: the run's."""
    gallery: Annotated[int, AtLeast(0)] = GALLERY
    """Instance: largest number of held-out images, drawn by the seed, 2 or more; 0: all."""
    undo: bool = False
    """Instance: also after the predictor has undone the change, which it is told, or which is inferred."""
    baselines: bool = True
    """Also a random encoder and raw pixels."""
    encoder: str = ""
    """Another encoder beside this one, through the same probe: timm:NAME[,weights=PATH], hf-hub:ID or a RUN."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.layer, self.layers)
        if self.gallery == 1:
            raise UserError("--gallery 1: in one image there is none to look for; give 0, or 2 and more.")


OPTIONS = Probe
WORK = "iwm.evaluation.tasks.probes:probe"
RANKS = True
EXAMPLE = "iwm probe runs/mine --data path/to/images --kind linear"
