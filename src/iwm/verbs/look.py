"""Look into the world model: maps of its tokens, two changes in a row, predictions averaged over actions."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class Look(Measured, Source):
    data: str
    """A source of images; with labels, averaging over actions is probed too."""
    val: str = ""
    """Source of the images that are shown and reported on; by default the source's own."""
    images: Annotated[int, AtLeast(20)] = 500
    """Training images of the probes, and as many test images; a tenth of these is changed twice in a row."""
    views: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of random actions that are averaged."""
    shown: Annotated[int, AtLeast(1)] = 4
    """Images in the picture; below them one example of each corruption that is undone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.views or min(self.views) < 1:
            raise UserError("iwm look needs --views 1 or more.")


OPTIONS = Look
WORK = "iwm.evaluation.world.look:look"
EXAMPLE = "iwm look runs/mine --data path/to/images"
