"""Classify images with a finetuned classifier; writes a CSV."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.verbs.shared import Computation


@dataclass(frozen=True, kw_only=True)
class Predict(Computation):
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder of a finetuned classifier, or a run that has exactly one."""
    images: Annotated[Positional[str], arg(metavar="IMAGES")]
    """A source of images, or one image file."""
    out: str = "predictions.csv"
    """File of the predictions."""
    task: str = ""
    """Name of the task, for a classifier of `iwm multitask`."""


OPTIONS = Predict
WORK = "iwm.evaluation.tasks.predict:predict"
RANKS = True
EXAMPLE = "iwm predict runs/mine path/to/images --out predictions.csv"
