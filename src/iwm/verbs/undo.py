"""Undo corruptions in latent space: what a probe of clean images reads before and after."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import Measured, Source


@dataclass(frozen=True, kw_only=True)
class Undo(Measured, Source):
    val: str = ""
    """Source of the images that are corrupted; by default the source's own."""
    images: Annotated[int, AtLeast(1)] = 500
    """Test images, each corrupted in every way."""
    train_images: Annotated[int, AtLeast(20)] = 5000
    """Training images of the probes."""
    guesses: Annotated[int, AtLeast(1)] = 4
    """Jitters tried with every combination of flags, the null one among them."""


OPTIONS = Undo
WORK = "iwm.evaluation.world.undo:undo"
