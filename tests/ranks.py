"""Several processes as torchrun would start them, forked from one that has imported everything: they start at once."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from iwm.runtime import rank_watch
from iwm.training import loop  # noqa: F401 - so that the forked ones need not import it

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["conftest", "ranks"])


def slowness() -> float:
    """How many times as long as alone work takes on this machine now, which may have other things to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ranks:
    """Processes that were started, and what they write to the terminal."""

    processes: list[BaseProcess]
    outputs: list[Path]

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Their exit codes, after so many seconds of a machine that has nothing else to do."""
        until = time.monotonic() + seconds * slowness()
        for process in self.processes:
            process.join(max(0.1, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def text(self, rank: int) -> str:
        return self.outputs[rank].read_text()

    @property
    def texts(self) -> str:
        return "\n".join(f"rank {rank}: {self.text(rank)}" for rank in range(len(self.outputs)))


def start(count: int, folder: Path, work: Callable[..., Any], *values: Any, patience: float = 1.0) -> Ranks:
    """Start `count` ranks that each do work(*values), a function at the top of a test module; an int is its code.

    A rank may be silent for 4 s and keep the others waiting for 6 s, times `patience`, longer on a busy machine."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    places |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path, path])  # of the process that all are forked from
    processes, outputs = [], []
    patience *= slowness()
    try:
        for rank in range(count):
            outputs.append(folder / f"rank-{rank}.txt")
            own = places | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                CONTEXT.Process(target=_child, args=(own, patience, outputs[-1], work, values), daemon=True)
            )
            processes[-1].start()
    finally:
        os.environ["PYTHONPATH"] = path
    return Ranks(processes, outputs)


def _child(
    places: dict[str, str], patience: float, output: Path, work: Callable[..., Any], values: tuple[Any, ...]
) -> None:
    os.environ.update(places)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    rank_watch.BEAT, rank_watch.SILENCE, rank_watch.WAITING = 0.1, 4.0 * patience, 6.0 * patience
    code = work(*values)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)
