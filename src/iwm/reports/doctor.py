"""`iwm doctor`: is a run healthy? The verdict on its newest metrics, and what was measured, in words."""

from pathlib import Path

from rich.text import Text

from iwm.reports.run import Run
from iwm.run_folder import is_remote
from iwm.runtime.console import console, tables_are_printed
from iwm.runtime.errors import UserError
from iwm.verbs.doctor import Doctor


def doctor(o: Doctor) -> int:
    """Print the verdict on a run; returns the exit code, 0 healthy and 1 ill.

    Raises UserError for a folder without metrics, and for metrics without the numbers that a verdict needs.
    """
    if is_remote(o.run):
        raise UserError(f"{o.run} holds no metrics of its training; give the --out folder of an `iwm pretrain`.")
    verdict = Run(Path(o.run).expanduser()).verdict()
    if tables_are_printed():
        word = (verdict.word, "green" if verdict.healthy else "red")
        console.print(Text.assemble(word, f" at step {verdict.numbers['step']}"))
        for sentence in (*verdict.findings, *verdict.instruments):
            console.print(f"  {sentence}")
    return 0 if verdict.healthy else 1
