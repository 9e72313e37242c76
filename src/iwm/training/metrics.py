"""Metrics as JSON lines, written while a run is trained."""

import json
from pathlib import Path
from typing import Any

from iwm.run_folder import read_metrics
from iwm.runtime import files
from iwm.runtime.files import plain
from iwm.training.callbacks import Callback, State


class Metrics(Callback):
    """`metrics.jsonl`: one object a line, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Forget every line after `step`: on resume the log is cut back to the checkpoint."""
        if self.path.exists():
            lines = [line for line in read_metrics(self.path) if line["step"] <= step]
            files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, line: dict[str, Any]) -> None:
        with files.naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(plain(line)) + "\n")

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        self.write(line)
