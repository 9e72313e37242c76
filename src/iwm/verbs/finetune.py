"""Solve a task with the predictor on the frozen encoder, or with the encoder itself."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import Classification, Continuation, Measured, Source


@dataclass(frozen=True, kw_only=True)
class Finetune(Classification, Continuation, Measured, Source):
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the pictures; 0: the run's."""
    baselines: bool = True
    """Also the same training with nothing pretrained, and raw pixels."""


OPTIONS = Finetune
WORK = "iwm.evaluation.tasks.finetune:finetune"
RANKS = True
PLAN = "iwm.evaluation.tasks.estimate:finetune"
EXAMPLE = "iwm finetune runs/mine --data path/to/images --train predictor"
