"""A run on disk as Python callers hold it: its metrics, its results, its model, and whether it is healthy."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iwm.model.world_model import ImageWorldModel
from iwm.reports import figures
from iwm.reports.results import Result, read
from iwm.reports.tables import Rows, html_of, picture_html, text_of
from iwm.run_folder import RunFolder, load_model
from iwm.runtime.errors import UserError
from iwm.training import health

TABLE = (
    *("step", "epoch", "loss", "position_mean_loss", "rankme", "target_variance"),
    *("target_rankme", "target_pixel_r2", "target_position_share", "photometric_share", "photometric_share_last"),
    *("action_sensitivity", "action_slope", "action_correlation", "probe_top1"),
)
"""The numbers of the newest line of metrics that a run shows."""


@dataclass(frozen=True)
class DoctorResult:
    """Whether a run is healthy, with the findings in words, and what was measured."""

    healthy: bool
    word: str
    findings: tuple[str, ...]
    instruments: tuple[str, ...] = ()
    """What was measured of targets and predicted changes, in words."""
    numbers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The line of metrics that was judged."""

    def __str__(self) -> str:
        return "\n  ".join([self.word, *self.findings, *self.instruments])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(one)}</li>" for one in (*self.findings, *self.instruments))
        return f"<b>{html.escape(self.word)}</b><ul>{lines}</ul>"


@dataclass(frozen=True)
class Run:
    """A run on disk; verbs take it wherever they take the path of a run."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.folder.metric_lines()

    @property
    def results(self) -> list[Result]:
        """All that was measured on the run."""
        eval_ = self.folder.eval
        return [read(eval_ / f"{one['file']}.json") for one in self.folder.results()]

    def load(self, device: str = "cpu") -> ImageWorldModel:
        """The trained model in eval mode."""
        return load_model(self.path, device)

    def verdict(self) -> DoctorResult:
        """Whether it is learning or collapsing. Raises UserError for a run without metrics."""
        folder = self.folder.require("metrics")
        lines = folder.metric_lines()
        if not lines:
            raise UserError(f"{folder.metrics} is empty; let the run reach its first log line.")
        verdict = health.judge(lines[-1], folder.objective_kind())
        return DoctorResult(verdict.healthy, verdict.word, verdict.findings, verdict.instruments, lines[-1])

    def figure(self) -> Figure:
        """The training curves. Raises UserError before the first line of metrics."""
        if not self.metrics:
            raise UserError(f"{self.path} has no metrics yet; let the run reach its first log line.")
        return figures.curves(self.metrics)

    def _table(self) -> Rows:
        line = self.metrics[-1] if self.metrics else {}
        return [["what", "value"], *([name, line[name]] for name in TABLE if name in line)]

    def __str__(self) -> str:
        return text_of([(f"Run {self.path}", self._table())])

    def _repr_html_(self) -> str:
        verdict = self.verdict()._repr_html_() if self.metrics else ""
        gallery = picture_html(self.folder.gallery) if self.folder.gallery.is_file() else ""
        return html_of(self._table(), f"Run {self.path}") + verdict + gallery
