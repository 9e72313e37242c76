"""How good is the world model: MRR, hits@k, controls, strips."""

from dataclasses import dataclass

from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class World(Measured, Source):
    data: str
    """Source of the held-out images."""
    images: int = 64
    """Held-out images, a bank each."""
    bank: int = 256
    """Versions of an image that are ranked."""
    frozen_random_twin: bool = False
    """Also train and rank a twin with a frozen random encoder: same predictor, same budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bank < 2 or self.images < 1:
            raise UserError(
                f"A bank of {self.bank} entries over {self.images} images ranks nothing; give --bank 2 or more, "
                "--images 1 or more."
            )


OPTIONS = World
WORK = "iwm.evaluation.world.mrr:world"
