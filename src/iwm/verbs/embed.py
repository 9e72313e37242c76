"""Write the embeddings of images, of an encoder or as a world model predicts them after a change, into one file."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Computation, OneRun, check_blocks


@dataclass(frozen=True, kw_only=True)
class Reading(OneRun):
    """Which vector stands for an image."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder, exported weights, hf-hub:user/name, timm:NAME[,weights=PATH], or demo, the model in the package."""
    data: Annotated[Positional[str], arg(metavar="S")]
    """A source of images."""
    action: str = ""
    """Changes in raw units, hue=0.1,brightness=-0.2: the image as the predictor says that it looks after them."""
    space: Literal["encoder", "target"] = "encoder"
    """encoder: the encoder's tokens; target: the space that the predictor predicts, which --action needs and sets."""
    pooling: Literal["mean", "max", "2x2", "class", "tokens"] = "mean"
    """How one vector is made of the patch tokens; 2x2: means of the four quarters, side by side; class: the class
    token, of timm models that have one; tokens: all of them, one after another."""
    student: bool = False
    """Take the student instead of the EMA encoder."""
    layer: int = 0
    """Number of the block whose tokens are taken, from 1; 0: the last, after the final norm."""
    layers: int | Literal["all"] = 0
    """The last K blocks, or all, side by side, each LayerNormed and pooled. 0: one block."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the pictures; 0: the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self.layer, self.layers)
        own = {"--layer": self.layer, "--layers": self.layers, "--student": self.student}
        if self.in_target_space and (name := next((name for name, value in own.items() if value), "")):
            raise UserError(f"{name} belongs to the encoder's tokens; leave it out with --action or --space target.")
        if self.in_target_space and self.pooling == "class":
            raise UserError("--pooling class is of timm models, which predict nothing; give another --pooling.")

    @property
    def in_target_space(self) -> bool:
        return bool(self.action) or self.space == "target"


@dataclass(frozen=True, kw_only=True)
class Embed(Reading, Computation):
    out: str = ""
    """File of the embeddings, .parquet (columns path, label, embedding) or .npz. From Python it may be left out."""


OPTIONS = Embed
WORK = "iwm.evaluation.tasks.embed:embed"
RANKS = True
EXAMPLE = "iwm embed runs/mine path/to/images --out features.parquet"
