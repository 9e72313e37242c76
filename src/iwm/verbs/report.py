"""Write RUN/report.html: curves, gallery, strips, tables, a verdict."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Report:
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run folder; or what else was evaluated, as demo or hf-hub:user/name."""
    out: str = ""
    """File of the page; by default RUN/report.html."""
    report_to: str = ""
    """Trackers that are sent the page, pictures and results, comma-separated: tensorboard, wandb, trackio, mlflow."""


OPTIONS = Report
WORK = "iwm.reports.sending:report"
EXAMPLE = "iwm report runs/mine"
