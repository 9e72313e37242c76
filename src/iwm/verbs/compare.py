"""One table of the results of several runs."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Compare:
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")]
    """Run folders."""


OPTIONS = Compare
WORK = "iwm.reports.compare:compare"
EXAMPLE = "iwm compare runs/one runs/two"
