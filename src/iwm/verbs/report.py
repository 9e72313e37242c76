"""Write RUN/report.html: curves, gallery, strips, tables, a verdict."""

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Report:
    run: Positional[str]
    """A run folder."""


OPTIONS = Report
WORK = "iwm.reports.page:report"
