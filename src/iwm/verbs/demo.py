"""See what an image world model does: the shipped one on your photos, then one trained anew in minutes."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.runtime.bounds import Seed
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Options


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    photos: Annotated[Positional[str], arg(metavar="PHOTOS")] = "sample"
    """Your photos: an image, a folder, .zip or .npz. From 200 up a model is trained on them, else on the 800 embedded
    ones."""
    out: str = ""
    """Folder of the run; by default runs/demo, with -own where it trains on your photos, and -quick."""
    quick: bool = False
    """One epoch, to see every step; too short to learn much."""
    full: bool = False
    """Then half an hour more: MRR beside a twin with a frozen random encoder, labelled probes, finetuned predictor."""
    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.photos:
            raise UserError("Which photos? Give an image, a folder, .zip or .npz, or leave them out.")


OPTIONS = Demo
WORK = "iwm.cli.demo:demo"
PLAN = "iwm.cli.demo:estimate"
EXAMPLE = "iwm demo path/to/photos --out runs/mine"
