"""Progress bars in Jupyter and marimo: one line of HTML that is replaced while work goes on."""

import html
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.progress import Progress, TaskID

EVERY = 0.25
"""Seconds between two drawings."""

Display = Callable[[str], None]
"""Shows HTML in place of what it showed before."""


def display() -> Display | None:
    """How the notebook that this runs in shows HTML; None outside notebooks.

    Neither is imported here: whoever runs in one has it already.
    """
    marimo: Any = sys.modules.get("marimo")
    if marimo is not None and marimo.running_in_notebook():
        return lambda text: marimo.output.replace(marimo.Html(text))
    if "ipykernel" in sys.modules:
        ipython: Any = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
            return _jupyter_display(ipython)
    return None


def _jupyter_display(ipython: Any) -> Display:
    handles: list[Any] = []

    def show(text: str) -> None:
        content = ipython.display.HTML(text)
        if handles:
            handles[0].update(content)
        else:
            handles.append(ipython.display.display(content, display_id=True))

    return show


class NotebookProgress(Progress):
    """rich's bookkeeping of tasks, drawn as HTML at most every EVERY seconds."""

    def __init__(self, *columns: Any, unit: str, display: Display) -> None:
        super().__init__(*columns, auto_refresh=False)
        self.unit, self.display, self.latest = unit, display, 0.0

    def start(self) -> None:
        self.draw()

    def stop(self) -> None:
        self.draw()

    def refresh(self) -> None:
        """Called by rich whenever a task changes by a lot; the drawing has a pace of its own."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._draw_in_time()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._draw_in_time()

    def _draw_in_time(self) -> None:
        if time.monotonic() - self.latest >= EVERY:
            self.draw()

    def draw(self) -> None:
        self.latest = time.monotonic()
        self.display("".join(self._line(task) for task in self.tasks))

    def _line(self, task: Any) -> str:
        done, total = int(task.completed), int(task.total or 0)
        left = task.time_remaining
        words = [f"{done:,}/{total:,} {self.unit}", str(task.fields.get("note", ""))]
        words += [f"{task.elapsed or 0:.0f} s", f"{left:.0f} s left" if left else ""]
        return (
            f"<div>{html.escape(task.description)} <progress value='{done}' max='{max(total, 1)}'></progress> "
            f"{html.escape('  '.join(word for word in words if word))}</div>"
        )
