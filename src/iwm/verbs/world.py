"""How good is the world model: MRR, hits@k, controls, strips."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class World(Measured, Source):
    data: str
    """Source of the held-out images."""
    images: Annotated[int, AtLeast(1)] = 64
    """Held-out images that are changed."""
    bank: Annotated[int, AtLeast(2)] = 256
    """Changed versions of each image, among which the true one is ranked."""
    frozen_random_twin: bool = False
    """Also train and rank a twin with a frozen random encoder: same predictor, same budget."""


OPTIONS = World
WORK = "iwm.evaluation.world.mrr:world"
RANKS = True
EXAMPLE = "iwm world runs/mine --data path/to/images"
