"""Open an interactive page: imagine changes of your images, find the change between two, search a folder."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.runtime.bounds import AtLeast, Seed
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Computation

MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class App(Computation):
    run: Annotated[Positional[str], arg(metavar="RUN")] = "demo"
    """A run folder, exported weights, hf-hub:user/name, or demo, the model in the package."""
    data: str = "sample"
    """A source whose images can be chosen and are searched; held-out ones come first."""
    images: Annotated[int, AtLeast(1)] = 1000
    """Largest number of these images, drawn by the seed."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets every machine of the network in."""
    port: Annotated[int, AtLeast(0)] = 7860
    """Port to listen at; 0: any that is free."""
    bank: Annotated[int, AtLeast(2)] = 256
    """Versions of an image that are ranked, the truth among them."""
    max_megabytes: Annotated[int, AtLeast(1)] = 10
    """Largest file that is taken from the browser."""
    max_megapixels: Annotated[int, AtLeast(1)] = 24
    """Largest image that is taken from the browser."""
    seed: Annotated[int, Seed()] = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > MOST_PORT:
            raise UserError(f"--port {self.port}: give at most {MOST_PORT}, or 0 for any that is free.")


OPTIONS = App
WORK = "iwm.page.server:app"
EXAMPLE = "iwm app runs/mine --data path/to/images"
