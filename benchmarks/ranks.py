"""Several ranks on one machine, images a second: what sharing a training step costs.

    threads     one process with two threads                                        what the others are compared with
    alone       two processes of one thread, each with half the batch, nothing sent what two processes can do here
    ddp, fsdp2  two ranks of one thread that share the batch, gloo                  what DDP and FSDP2 add to it

All are started at once and work in turns, so that what else the machine does falls on all of them alike; while one
works, the others wait for a word. On a busy machine the seconds of the cores that a step takes say more than those of
the clock: they leave out what others did meanwhile, but also the waiting of threads and ranks for one another. A step
is `Training.step` at the size of ViT-S/16; decoding is not in it.
"""

import multiprocessing
import os
import socket
import statistics
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.sizes import BATCH
from benchmarks.timing import Options, Spread, show
from iwm.runtime.console import console
from iwm.runtime.openmp import limit_spinning

RANKS = 2
WAYS = {"threads": 1, "alone": RANKS, "ddp": RANKS, "fsdp2": RANKS}
"""How many processes each has."""


def work(way: str, rank: int, port: int, batch: int, orders: Connection) -> None:
    """One process: takes a step each time it is told to."""
    ranks = WAYS[way]
    together = way in ("ddp", "fsdp2")
    os.environ["OMP_NUM_THREADS"] = str(RANKS // ranks)
    if together:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from benchmarks.sizes import batch_of, settings_of
    from iwm.runtime import devices, distributed
    from iwm.runtime.devices import Session
    from iwm.training.step import Training

    settings = settings_of("vit-s", "fp32", Options())
    settings = replace(settings, optim=replace(settings.optim, batch_size=batch))
    settings = replace(settings, speed=replace(settings.speed, threads=RANKS // ranks, shard=way == "fsdp2"))
    whole = batch_of(settings, 0)
    mine = slice(rank * batch // ranks, (rank + 1) * batch // ranks)
    part = replace(whole, images=whole.images[mine], indices=whole.indices[mine])
    with Session.open(settings.speed) as session, devices.kept_memory():
        training = Training.start(settings, 100, session)
        while orders.recv():
            since = time.process_time()
            training.step(replace(part, step=training.steps))
            distributed.rest()
            orders.send(time.process_time() - since)


@dataclass
class Team:
    """The processes of one way, and how long they take for a step."""

    way: str
    pipes: list[Connection]
    processes: list[Any]

    @classmethod
    def start(cls, way: str, batch: int) -> "Team":
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pipes, processes = [], []
        for rank in range(WAYS[way]):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(way, rank, port, batch, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        return cls(way, pipes, processes)

    def seconds(self) -> tuple[float, float]:
        """Of a step: by the clock, and of all cores' time."""
        since = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(True)
        cores = sum(pipe.recv() for pipe in self.pipes)
        return time.perf_counter() - since, cores

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for process in self.processes:
            process.join(60)


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """One row a way; ratios are of neighbouring turns, so that a load that comes and goes weighs on both."""
    if options.device.type != "cpu":
        return [], ["Ranks are compared on the CPU alone: two of them do not share a GPU."]
    batch = BATCH["vit-s"][0 if options.quick else 1]
    limit_spinning()  # as the command line does
    teams = [Team.start(way, batch) for way in WAYS]
    for team in teams:
        for _ in range(2):
            team.seconds()  # allocates, and fills caches
    rates: dict[str, dict[str, list[float]]] = {of: {way: [] for way in WAYS} for of in ("second", "core_second")}
    loads = []
    for repeat in range(options.repeats):
        loads.append(os.getloadavg()[0])
        for team in teams if repeat % 2 else reversed(teams):
            for values, seconds in zip(rates.values(), team.seconds(), strict=True):
                values[team.way].append(batch / seconds)
        clock, cores = ({way: round(each[-1], 3) for way, each in values.items()} for values in rates.values())
        console.print(f"{repeat}: images a second {clock}, a second of a core {cores}", highlight=False)
    for team in teams:
        team.end()
    rows = []
    for way, processes in WAYS.items():
        row: dict[str, Any] = {"way": way, "processes": processes, "batch": batch, "load": statistics.median(loads)}
        for of, values in rates.items():
            row[f"images_per_{of}"] = vars(Spread.of(values[way]))
            for other in ("threads", "alone"):
                ratios = [a / b for a, b in zip(values[way], values[other], strict=True)]
                row[f"per_{of}_over_{other}"] = vars(Spread.of(ratios))
        rows.append({**row, "rates": {of: values[way] for of, values in rates.items()}})
    show("a training step shared by ranks", rows)
    return rows, []
