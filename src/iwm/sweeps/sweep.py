"""`iwm sweep`: conditioning x difficulty x capacity, which pretraining gives which kind of representation (paper
section 4). Runs the cells of a `Study` one after the other, or as processes of their own."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iwm.data.sources import is_source
from iwm.runtime import devices, errors
from iwm.runtime.console import console, progress, tables_are_printed
from iwm.runtime.errors import Interrupted, Preempted, UserError
from iwm.runtime.files import mark_output
from iwm.sweeps import measurement, page
from iwm.sweeps.axes import Cell
from iwm.sweeps.study import Study
from iwm.training.stop_signal import SIGNALS
from iwm.verbs.sweep import Sweep

POLL_SECONDS = 0.5
STOPPED = {kind.code: kind for kind in (Interrupted, Preempted)}
"""What a process that was stopped from outside ends with, by its exit code."""


def sweep(o: Sweep) -> dict[str, Any]:
    """Run all cells (or the one called `cell`) into settings.run.out and return what DIR/sweep.json holds.

    `list` prints a command for every cell instead; `jobs` runs that many at once, each as a process of its own. Both
    repeat `words`, those of the command line after `iwm sweep`. Raises UserError for bad input and when a cell failed,
    Interrupted when stopped by Ctrl-C, Preempted by SIGTERM or SIGUSR1.
    """
    study = Study(o)
    require_sense(study)
    if o.list:
        commands = [_command(o.words, cell.name) for cell in study.cells]
        if tables_are_printed():
            print("\n".join(commands))
        return {"commands": commands}
    study.require_same()
    with stoppable({}):
        content = _carry_out(study.prepare())
    if tables_are_printed():
        page.show(content, study.folder)
    mine = [row for row in content["runs"] if o.cell in ("", row["cell"])]
    broken = [row for row in mine if row["failed"]]
    if broken:
        first = f"{broken[0]['cell']} ({broken[0]['failed'].rstrip('.')})"
        raise UserError(
            f"{len(broken)} of {len(mine)} cells failed, first {first}; the others are in {study.folder}/sweep.html."
        )
    return content


def _carry_out(study: Study) -> dict[str, Any]:
    """Run what is left of a prepared study; returns what was collected. Raises Interrupted when stopped."""
    o = study.options
    mark_output(study.folder)
    mine = [cell for cell in study.cells if o.cell in ("", cell.name)]
    if not o.cell:
        content = study.collect()  # what is there already, before hours pass
        if not all(map(study.is_finished, mine)):
            page.warn_of_precision(content)
    try:
        if o.jobs > 1 and not o.cell:
            run_apart(study, mine, o.jobs, o.words)
        else:
            run_here(study, mine)
    except Interrupted:
        study.collect()  # the cells that have got farther since
        raise
    return study.collect()


def require_sense(study: Study) -> None:
    """Raises UserError for options that cannot be carried out: now, not after hours of pretraining."""
    o = study.options
    if not o.settings.run.out:
        raise UserError("Where should the sweep go? Give --out DIR.")
    if is_source(study.folder, o.settings.data.source):
        raise UserError(f"--out {o.settings.run.out} is the source itself; give another folder.")
    if not o.settings.run.resume:
        raise UserError("A sweep always goes on with what is there; leave out --no-resume, and give another --out.")
    if o.list and o.cell:
        raise UserError("--list prints the commands of all cells, and --cell does one; give one of them.")
    if (o.list or o.jobs > 1) and not o.words:
        raise UserError("A process of its own repeats a command line; from Python leave out jobs and list.")
    if o.recipes and not o.words:
        raise UserError("From Python give further recipes by their settings, others=(iwm.Config(...), ...).")
    if o.finetune_epochs:
        measurement.finetuning("RUN", "DATA", o.evaluations(controls=False)["predictor_finetuning"])
    names = [cell.name for cell in study.cells]
    if o.cell and o.cell not in names:
        raise UserError(f"This sweep has no cell '{o.cell}'; {errors.did_you_mean(o.cell, names)}")


def _command(words: Sequence[str], cell: str) -> str:
    """The command of one cell, to type on any machine that sees the same folders."""
    return shlex.join(["iwm", "sweep", *(word for word in words if word != "--list"), "--cell", cell])


def run_here(study: Study, cells: Sequence[Cell]) -> None:
    """Run cells one after the other. Raises Interrupted after Ctrl-C, Preempted after SIGTERM or SIGUSR1."""
    for cell in cells:
        try:
            with stoppable({}):
                if study.run(cell):
                    study.collect()
        except Interrupted as saved:
            sentence = f"Stopped in the middle of cell {cell.name}; the same command goes on there."
            raise type(saved)(sentence) from None


def run_apart(study: Study, cells: Sequence[Cell], jobs: int, words: Sequence[str]) -> None:
    """Run cells as processes of their own, `jobs` at once, each with its share of the cores and DIR/CELL/log.txt.

    Raises Interrupted after Ctrl-C and Preempted after SIGTERM or SIGUSR1, of a single process too, when all have
    saved, and UserError when a process broke down.
    """
    waiting = [cell for cell in cells if not study.is_finished(cell)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    crashed = []
    with stoppable(running), progress("cells") as bar:
        task = bar.add_task("sweep", total=len(waiting), note="")
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.name] = _start(cell, _log(study, cell), jobs, words)
            for cell in cells:
                if cell.name not in running or running[cell.name].poll() is None:
                    continue
                failed = running.pop(cell.name).returncode
                if failed in STOPPED:
                    raise STOPPED[failed]("A cell was stopped, and the others with it; the same command goes on there.")
                if failed and not study.record(cell).get("failed"):
                    crashed.append(cell)
                bar.advance(task)
            bar.update(task, note=", ".join(running))
            time.sleep(POLL_SECONDS)
    if crashed:
        raise UserError(f"The process of cell {crashed[0].name} broke down; see {_log(study, crashed[0])}.")


def _log(study: Study, cell: Cell) -> Path:
    return study.run_of(cell).path / "log.txt"


def _start(cell: Cell, log: Path, jobs: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """The process of one cell, which writes into the log."""
    share = {"OMP_NUM_THREADS": str(max(1, devices.cores() // jobs))}
    # As the `iwm` command, so that the results say what to type.
    program = "import sys; sys.argv[0] = 'iwm'; from iwm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sweep", *words, "--cell", cell.name]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=share | os.environ, start_new_session=True)
    console.print(f"{cell.name} started; {log}", soft_wrap=True)
    return process


@contextmanager
def stoppable(running: Mapping[str, Any]) -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGUSR1: ask every process once to save and stop, wait for all, raise Interrupted, or
    Preempted after the two others, by which schedulers ask.

    Training has its own way to stop; this is for what is around it.
    """
    by_scheduler: list[int] = []

    def stop(number: int, frame: object) -> None:
        if not by_scheduler:  # schedulers repeat themselves, and ask every process of a job
            by_scheduler.append(number)
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # elsewhere whoever runs us handles signals
    asking = [number for number in SIGNALS if number != signal.SIGINT] if ours else []
    before = {number: signal.signal(number, stop) for number in asking}
    try:
        yield
    except KeyboardInterrupt:
        if running:
            console.print("Stopping, the cells are saving...")
        kind = Preempted if by_scheduler else Interrupted
        raise kind("All cells have stopped; the same command goes on where they were.") from None
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
