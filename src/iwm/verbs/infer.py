"""What the model knows of a change: the action between two images, or its error over a source, beside baselines."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, OneRun


@dataclass(frozen=True, kw_only=True)
class Infer(Measured, OneRun):
    source: Annotated[Positional[str], arg(metavar="SOURCE")] = ""
    """An image file."""
    target: Annotated[Positional[str], arg(metavar="TARGET")] = ""
    """An image file: the same image after a change."""
    data: str = ""
    """Instead of two images: a source; its held-out images are changed at random, and the error is measured."""
    val: str = ""
    """Source of the held-out images; by default the data's own."""
    images: Annotated[int, AtLeast(1)] = 64
    """Held-out images that are changed."""
    train_images: Annotated[int, AtLeast(20)] = 2000
    """Training images the baselines learn from."""
    shift: Annotated[int, AtLeast(0)] = 0
    """With --data: the target's crop lies this many pixels to the right of and below the source's; 0: the same crop."""
    undo: bool = True
    """Two images: also search for what has to be undone, such as blur; else only for jitter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.data) == bool(self.source) or bool(self.source) != bool(self.target):
            raise UserError("Give two images, iwm infer RUN SOURCE TARGET, or --data S to measure over a source.")
        if self.shift and not self.data:
            raise UserError(f"--shift {self.shift} moves the crops of a source; give --data S, or leave it out.")


OPTIONS = Infer
WORK = "iwm.evaluation.world.infer:infer"
EXAMPLE = "iwm infer demo photo.jpg changed.jpg"
