"""Is the run healthy? A verdict in words; exit code 0 healthy, 1 ill."""

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Doctor:
    run: Positional[str]
    """A run folder."""


OPTIONS = Doctor
WORK = "iwm.reports.doctor:doctor"
