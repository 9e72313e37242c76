"""Fit a pixel decoder, which shows predictions as pictures; encoder and predictor stay as they are."""

from dataclasses import dataclass
from typing import Annotated, Literal

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import Measured, OneRun


@dataclass(frozen=True, kw_only=True)
class Decoder(Measured, OneRun):
    data: str = ""
    """A source of images; by default what the run was trained on."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""
    images: Annotated[int, AtLeast(10)] = 500
    """Training images it is fitted to; on a tenth of them the strength and the head are chosen."""
    changes: Annotated[int, AtLeast(1)] = 3
    """Changed versions of each of these images."""
    head: Literal["auto", "linear", "mlp"] = "auto"
    """linear: ridge regression; mlp: with a learned part on top; auto: that part is tried where a patch has more
    numbers than a token, and kept where it takes 0.2 dB off the error."""
    test_images: Annotated[int, AtLeast(1)] = 100
    """Held-out images that are reported on."""
    bank: Annotated[int, AtLeast(2)] = 64
    """Changed versions of each of these; the first is predicted, the mean of all is a baseline."""


OPTIONS = Decoder
WORK = "iwm.evaluation.world.decoder:decoder"
RANKS = True
EXAMPLE = "iwm decoder runs/mine"
