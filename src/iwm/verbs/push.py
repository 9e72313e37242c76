"""Put a RUN on the Hugging Face hub: weights, pixel decoder and a model card; private unless asked otherwise."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.verbs.shared import OneRun, Published


@dataclass(frozen=True, kw_only=True)
class Push(Published, OneRun):
    repository: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """Where it goes, user/name; made where it does not exist."""
    public: bool = False
    """Everyone may see it; without this only those whom you let in."""
    encoder_as: str = ""
    """A second repository, user/name, for the encoder alone: one that timm.create_model loads."""
    dry_run: bool = False
    """Show what would go, with its sizes; nothing is sent, and no token is needed."""


OPTIONS = Push
WORK = "iwm.exporting.push:push"
EXAMPLE = "iwm push runs/mine user/name --dry-run"
