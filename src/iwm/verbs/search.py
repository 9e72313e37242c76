"""Find the images of a source that look like one image, or as it would look after a change."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.runtime.errors import UserError
from iwm.verbs.embed import Reading
from iwm.verbs.shared import Measured


@dataclass(frozen=True, kw_only=True)
class Search(Reading, Measured):
    like: str
    """The image that is looked for: an image file."""
    nearest: Annotated[int, AtLeast(1)] = 20
    """Images that are shown."""
    features: str = ""
    """A file of `iwm embed` of the same run and images, which are then not encoded again; it also says how they are
    embedded."""
    pixels: bool = False
    """Also the nearest by their colours alone, 8 x 8 pixels: what a search without a model gives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling == "tokens":
            raise UserError("--pooling tokens gives no single vector to search by; give mean, max, 2x2 or class.")
        own = {"--pooling": self.pooling != "mean", "--layer": self.layer, "--layers": self.layers}
        own |= {"--student": self.student, "--size": self.size}
        if self.features and (name := next((name for name, value in own.items() if value), "")):
            raise UserError(f"--features {self.features} says how the images are embedded; leave out {name}.")


OPTIONS = Search
WORK = "iwm.evaluation.tasks.search:search"
EXAMPLE = "iwm search runs/mine path/to/images --like photo.jpg --action brightness=-0.3"
