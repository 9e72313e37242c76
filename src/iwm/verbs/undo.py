"""Undo corruptions in latent space: accuracy of a probe of clean images before and after."""

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
    """Jitters that are tried when the corruption is unknown, with every combination of flags."""


OPTIONS = Undo
WORK = "iwm.evaluation.world.undo:undo"
RANKS = True
EXAMPLE = "iwm undo runs/mine --data path/to/images"
