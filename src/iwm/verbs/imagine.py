"""Predict what an image looks like after a change; shows the nearest of a bank, and the rank of the true one."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, OneRun


@dataclass(frozen=True, kw_only=True)
class Imagine(Measured, OneRun):
    image: Annotated[Positional[str], arg(metavar="IMAGE")]
    """An image file."""
    action: str = ""
    """Changes in raw units: brightness=0.3,hue=-0.05. grayscale=1 shows a grey image and asks for the colours."""
    sweep: str = ""
    """Instead of an action: one parameter over its range, for example hue."""
    bank: Annotated[int, AtLeast(2)] = 256
    """Versions of the image that are ranked, the truth among them."""
    candidates: str = ""
    """A source of images; as many changed versions of these join the bank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.action) == bool(self.sweep):
            raise UserError("What is to be imagined? Give --action brightness=0.3,hue=-0.05 or --sweep hue (not both).")


OPTIONS = Imagine
WORK = "iwm.evaluation.world.imagine:imagine"
EXAMPLE = "iwm imagine demo photo.jpg --action brightness=0.3"
