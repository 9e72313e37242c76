"""`iwm doctor`: is a run healthy? The verdict on its newest metrics, in words."""

from pathlib import Path

from iwm.run_folder import RunFolder, is_remote
from iwm.runtime.console import console, tables_are_printed
from iwm.runtime.errors import UserError
from iwm.training import health
from iwm.verbs.doctor import Doctor


def doctor(o: Doctor) -> int:
    """Print the verdict on a run; returns the exit code, 0 healthy and 1 ill.

    Raises UserError for a folder without metrics, and for metrics without the numbers that a verdict needs.
    """
    if is_remote(o.run):
        raise UserError(f"{o.run} holds no metrics of its training; give the --out folder of an `iwm pretrain`.")
    folder = RunFolder(Path(o.run).expanduser()).require("metrics")
    lines = folder.metric_lines()
    if not lines:
        raise UserError(f"{folder.metrics} is empty; let the run reach its first log line.")
    verdict = health.judge(lines[-1], folder.objective_kind())
    if tables_are_printed():
        console.print(f"[{'green' if verdict.healthy else 'red'}]{verdict.word}[/] at step {lines[-1]['step']}")
        for finding in verdict.findings:
            console.print(f"  {finding}")
    return 0 if verdict.healthy else 1
