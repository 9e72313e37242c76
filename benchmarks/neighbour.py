"""Images a second of training beside a busy process, with OpenMP's barriers spinning as by default or for a short time.

Every turn is a process of its own, because the OpenMP library reads its settings once; the contenders' turns alternate.
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks.sizes import batch_of, settings_of
from benchmarks.timing import Options, Spread, show
from iwm.config import Speed
from iwm.runtime import devices
from iwm.runtime.console import console
from iwm.runtime.devices import CPU
from iwm.runtime.openmp import SPINS
from iwm.training.step import Training

BUSY = "while True: pass"
TURN = "import sys; from benchmarks.neighbour import rate; print(rate(float(sys.argv[1]), int(sys.argv[2])))"


def rate(seconds: float, threads: int) -> float:
    """Images a second of steps of the recipe cifar10 on so many threads."""
    settings = settings_of("cifar10", "fp32", Options())
    with devices.threads(Speed(threads=threads)), devices.kept_memory():
        training, batch = Training.start(settings, 1000, CPU), batch_of(settings, 0)
        for step in range(3):
            training.step(replace(batch, step=step))
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            training.step(replace(batch, step=3 + steps))
            steps += 1
        return steps * settings.optim.batch_size / (time.perf_counter() - start)


def turn(threads: int, spins: str, seconds: float) -> float:
    """The same in a process of its own; `spins` is GOMP_SPINCOUNT, or empty for the library's default."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"GOMP_SPINCOUNT": spins} if spins else {}
    command = [sys.executable, "-c", TURN, str(seconds), str(threads)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(output.split()[-1])


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    cores = devices.cores()
    if cores < 2:
        return [], ["One core: threads have nobody to wait for."]
    contenders = [(cores, SPINS), (cores, ""), (1, "")]
    seconds, rows = max(1.0, options.seconds), []
    for busy in (0, 1):
        rates: dict[tuple[int, str], list[float]] = {each: [] for each in contenders}
        neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            for _ in range(options.repeats):
                for threads, spins in contenders:
                    rates[threads, spins].append(turn(threads, spins, seconds))
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()
        ours = rates[contenders[0]]
        for (threads, spins), theirs in rates.items():
            row = {"busy processes": busy, "threads": threads, "GOMP_SPINCOUNT": spins or "default"}
            ratio = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
            row |= {"images_per_second": asdict(Spread.of(theirs)), "ours_over_it": asdict(ratio), "rates": theirs}
            rows.append(row)
            console.print(f"{row['threads']} threads, spins {row['GOMP_SPINCOUNT']}, {busy} busy: {Spread.of(theirs)}")
    show("neighbour", rows)
    return rows, []
