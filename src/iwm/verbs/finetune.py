"""Solve a task with the predictor on the frozen encoder, or with the encoder itself."""

from dataclasses import dataclass

from iwm.verbs.shared import Classification, Measured, Source


@dataclass(frozen=True, kw_only=True)
class Finetune(Classification, Measured, Source):
    size: int = 0
    """Side of the pictures; 0: the run's."""
    start: str = ""
    """train both: folder of a finished predictor finetuning; made first where not given."""
    baselines: bool = True
    """Also the same training with nothing pretrained, and raw pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_use_of(self.start)


OPTIONS = Finetune
WORK = "iwm.evaluation.tasks.finetune:finetune"
