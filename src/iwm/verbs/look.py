"""Look into the world model: maps of its tokens, two changes in a row, predictions averaged over actions."""

from dataclasses import dataclass

from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class Look(Measured, Source):
    data: str
    """A source of images; with labels, averaging over actions is probed too."""
    images: int = 500
    """Training images and, as many, test images of the probes; a tenth of them is changed twice in a row."""
    views: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of random actions that are averaged."""
    shown: int = 4
    """Images in the picture; after them everything the source may carry is undone once."""

    def __post_init__(self) -> None:
        if self.images < 20 or self.shown < 1 or self.seed < 0 or not self.views or min(self.views) < 1:
            raise UserError("iwm look needs --images 20, --shown 1, --views 1 and --seed 0 or more.")


OPTIONS = Look
WORK = "iwm.evaluation.world.look:look"
