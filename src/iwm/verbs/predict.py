"""Say what is on images with a finetuned classifier; writes a CSV."""

from dataclasses import dataclass, field

from tyro.conf import Positional

from iwm import config


@dataclass(frozen=True, kw_only=True)
class Predict:
    run: Positional[str]
    """The folder of a finetuned classifier, or a run that has exactly one."""
    images: Positional[str]
    """A source of images, or one image file."""
    out: str = "predictions.csv"
    task: str = ""
    """Which of the tasks, for weights of `iwm multitask`."""
    speed: config.Speed = field(default_factory=config.Speed)


OPTIONS = Predict
WORK = "iwm.evaluation.tasks.predict:predict"
