"""Races: contenders run in turns, so that what else the machine does falls on all of them alike.

    ratio_r = rate of ours in repeat r / rate of the other in repeat r;   reported: median, lowest and highest over r

Each repeat starts with another contender. A contender's first runs are not timed: they allocate, compile, warm caches.
"""

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from iwm.runtime import devices, files
from iwm.runtime.console import console
from iwm.runtime.files import plain


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    quick: bool = False
    out: Path = Path("build/benchmarks")
    sizes: tuple[str, ...] = ("demo", "cifar10", "vit-s")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    repeats: int = 5
    seconds: float = 4.0
    """Least time of one turn, at least one run."""
    compile: bool = False
    against: Path | None = None
    """Another checkout of this repository."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[], object]
    """One step, one batch of views, one batch of masks."""
    images: int
    """Images (or masks) of one run."""
    note: str = ""


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall-clock seconds of one run, averaged over `times` in a row."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / times


def race(contenders: Sequence[Contender], options: Options) -> dict[str, list[float]]:
    """Images a second of every contender in every repeat."""
    times = {}
    for contender in contenders:
        contender.run()
        single = seconds_of(contender.run, options.device)
        times[contender.name] = max(1, int(options.seconds / max(single, 1e-6)))
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for repeat in range(options.repeats):
        turn = repeat % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            seconds = seconds_of(contender.run, options.device, times[contender.name])
            rates[contender.name].append(contender.images / seconds)
    return rates


def compare(contenders: Sequence[Contender], options: Options, **what: Any) -> list[dict[str, Any]]:
    """Race them; the first is ours. One row a contender, `what` (size, precision...) in each."""
    console.print(", ".join(f"{name} {value}" for name, value in what.items()), end=": ")
    rates = race(contenders, options)
    console.print("; ".join(f"{name} {statistics.median(values):.3g}/s" for name, values in rates.items()))
    ours = rates[contenders[0].name]
    rows = []
    for contender in contenders:
        theirs = rates[contender.name]
        ratio = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
        row = {**what, "contender": contender.name, "images_per_second": asdict(Spread.of(theirs))}
        rows.append(row | {"ours_over_it": asdict(ratio), "rates": theirs, "note": contender.note})
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table: a column for every plain value and for every spread."""
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if name != "rates"]
    table = Table(title=title)
    for name in columns:
        table.add_column(name.replace("_", " "))
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        cells = [str(Spread(**cell)) if isinstance(cell, dict) else cell for cell in cells]
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)


def versions() -> dict[str, str]:
    """Of the packages compared with; "not installed" where one is missing."""
    found = {}
    for package in ("lightly", "stable-pretraining", "kornia"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(subject: str, rows: Sequence[dict[str, Any]], missing: Sequence[str], options: Options) -> Path:
    """`OUT/SUBJECT[-quick][-compiled].json` with the command, options, versions, machine and date."""
    document = {
        "subject": subject,
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "options": {**asdict(options), "device": str(options.device)},
        "versions": versions(),
        "hardware": devices.describe(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "missing": list(missing),
        "rows": list(rows),
    }
    marks = ("-quick" if options.quick else "") + ("-compiled" if options.compile else "")
    path = options.out / f"{subject}{marks}.json"
    files.write_text(path, json.dumps(plain(document), indent=1) + "\n")
    for sentence in missing:
        console.print(f"[yellow]{sentence}")
    console.print(f"Written: {path}", soft_wrap=True)
    return path
