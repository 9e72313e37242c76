"""One table of the results of several runs."""

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Compare:
    runs: Positional[tuple[str, ...]]
    """Run folders."""


OPTIONS = Compare
WORK = "iwm.reports.compare:compare"
