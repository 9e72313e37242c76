"""Accuracy against the number of finetuned parameters (paper figure 3)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Fixed, Suppress

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import Classification, Measured, Source


@dataclass(frozen=True, kw_only=True)
class Efficiency(Classification, Measured, Source):
    train: Suppress[Fixed[str]] = "predictor"
    predictor: Suppress[Fixed[Literal["pretrained", "random"]]] = "pretrained"
    depth: Suppress[Fixed[int]] = 0
    depths: tuple[int, ...] = ()
    """Numbers of predictor blocks that are finetuned; by default one, half and all."""
    blocks: tuple[int, ...] = ()
    """Numbers of last encoder blocks that are finetuned; by default 1, 2 and 4."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the pictures; 0: the run's."""


OPTIONS = Efficiency
WORK = "iwm.evaluation.tasks.efficiency:efficiency"
RANKS = True
PLAN = "iwm.evaluation.tasks.estimate:efficiency"
EXAMPLE = "iwm efficiency runs/mine --data path/to/images"
