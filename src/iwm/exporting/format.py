"""The interface of an export format, and what each is given: a RUN, read once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from iwm.model import weights
from iwm.model.encoder import PatchEncoder
from iwm.model.world_model import ImageWorldModel
from iwm.reports.finding import join
from iwm.run_folder import find_weights, load_model
from iwm.runtime.errors import UserError
from iwm.verbs.export import Export


@dataclass(frozen=True)
class Request:
    """A RUN that is to be exported, with the options. Reading it raises UserError when it is none, or is damaged."""

    options: Export

    @property
    def run(self) -> str:
        return self.options.run

    @cached_property
    def place(self) -> Path:
        """The folder of the weights."""
        return find_weights(self.run)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The `config.json` of the weights."""
        try:
            return weights.read_meta(self.place)
        except (OSError, ValueError) as error:
            raise UserError(f"The weights in {self.place} cannot be read ({error}); export them again.") from None

    @property
    def finetuned(self) -> str:
        """classifier or segmenter where RUN is the weights of one, else empty."""
        return next((kind for kind in weights.FINETUNED if kind in self.meta), "")

    @cached_property
    def model(self) -> ImageWorldModel:
        """The world model, on the CPU. Raises UserError where RUN is a finetuned one's weights."""
        if self.finetuned:
            raise UserError(f"{self.run} is a finetuned {self.finetuned}, no world model; give the run it came from.")
        return load_model(self.run)

    @property
    def encoder(self) -> PatchEncoder:
        """The EMA encoder, or the student where the options say so."""
        return self.model.used_encoder(self.options.student)

    @property
    def encoder_is_published(self) -> bool:
        """Whether the encoder is one of others, by its name, on which nothing was trained."""
        return weights.is_published(self.meta["settings"]["encoder"])


class ExportFormat(ABC):
    """A format that `iwm export --format NAME` writes; `iwm.register_format(CLASS)` adds one of your own."""

    name: ClassVar[str] = ""
    takes: ClassVar[tuple[str, ...]] = ()
    """Options it has a use for, beyond RUN, --format and --out; others are refused."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed; a package has the name of its module."""

    def check(self, options: Export) -> None:
        """Raises UserError for options that would be passed over in silence, and without the modules it needs."""
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            raise UserError(f"--format {self.name} needs {join(absent)}; install: pip install {' '.join(absent)}.")
        for option in ("part", "size", "student", "small", "license", "photos"):
            if (
                option not in self.takes
                and getattr(options, option) != type(options).__dataclass_fields__[option].default
            ):
                raise UserError(f"--{option} has no meaning for --format {self.name}; leave it out.")

    @abstractmethod
    def write(self, request: Request, folder: Path) -> dict[str, Any]:
        """Write files, no folders, into an empty folder; returns what the result says beside their names and sizes."""

    def usage(self, out: Path, result: dict[str, Any]) -> Sequence[str]:
        """How to load what was written to `out`, a line each."""
        return ()
