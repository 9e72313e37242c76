"""Is the run healthy? A verdict in words; exit code 0 healthy, 1 ill."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Doctor:
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder."""


OPTIONS = Doctor
WORK = "iwm.reports.doctor:doctor"
EXAMPLE = "iwm doctor runs/mine"
