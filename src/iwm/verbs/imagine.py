"""What would an image look like after a change: the nearest of a bank to the prediction, and the truth's rank."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, OneRun


@dataclass(frozen=True, kw_only=True)
class Imagine(Measured, OneRun):
    image: Positional[str]
    """An image file."""
    action: str = ""
    """Changes in raw units, brightness=0.3,hue=-0.05; grayscale=1 shows the model a grey image and has it undone."""
    sweep: str = ""
    """Instead of an action: a parameter that is moved over its range, as in --sweep hue."""
    bank: Annotated[int, AtLeast(2)] = 256
    """Versions of the image that are ranked, the truth among them."""
    candidates: str = ""
    """A source whose images join the bank, in as many versions again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.action) == bool(self.sweep):
            raise UserError("What is to be imagined? Give --action brightness=0.3,hue=-0.05 or --sweep hue (not both).")


OPTIONS = Imagine
WORK = "iwm.evaluation.world.imagine:imagine"
