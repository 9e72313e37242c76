"""Undo corruptions in latent space: what a probe of clean images reads before and after."""

from dataclasses import dataclass

from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class Undo(Measured, Source):
    images: int = 500
    """Test images, each corrupted in every way."""
    train_images: int = 5000
    """Training images of the probes."""
    guesses: int = 4
    """Jitters tried with every combination of flags, the null one among them."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.train_images < 20 or self.guesses < 1 or self.seed < 0:
            raise UserError("iwm undo needs --images 1, --train-images 20, --guesses 1 and --seed 0 or more.")


OPTIONS = Undo
WORK = "iwm.evaluation.world.undo:undo"
