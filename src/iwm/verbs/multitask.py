"""Solve several tasks with one predictor, beside a predictor of its own for each task."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Fixed, Suppress, UseAppendAction

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Classification, Measured, OneRun


@dataclass(frozen=True, kw_only=True)
class Multitask(Classification, Measured, OneRun):
    train: Suppress[Fixed[str]] = "predictor"
    task: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S: a name you choose and a labelled source; give it once for each of 2 to 8 tasks."""
    val: UseAppendAction[tuple[str, ...]] = ()
    """NAME=S2: source of the images that the task is reported on; by default the source's own."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the pictures; 0: the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train != "predictor":
            raise UserError(
                f"Several tasks share a predictor, so nothing else is trained; leave out train={self.train}."
            )


OPTIONS = Multitask
WORK = "iwm.evaluation.tasks.multitask:multitask"
RANKS = True
PLAN = "iwm.evaluation.tasks.estimate:multitask"
EXAMPLE = "iwm multitask runs/mine --task animals=path/to/animals --task plants=path/to/plants"
