"""How long work takes on this machine, measured on a little of it: for what is said before it begins."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ENOUGH = 0.3
"""Seconds after which a measurement is long enough."""


@dataclass(frozen=True)
class Pace:
    """What a batch of `count` items took."""

    count: int
    seconds: float
    bytes: int
    """Most memory of the process meanwhile; on a GPU of the GPU."""
    bytes_of_one: float
    """What every further item adds to it."""

    def seconds_of(self, count: int) -> float:
        """So many items take about this long, in one batch or several."""
        return self.seconds * count / self.count

    def bytes_in_batch(self, count: int) -> int:
        """A batch of so many takes about this much memory."""
        return round(self.bytes + max(0, count - self.count) * self.bytes_of_one)


def measure(work: Callable[[int], object], most: int, device: torch.device, least: int = 1) -> Pace:
    """The pace of `work`, which is given the size of a batch: from `least` on it is doubled up to `most`, until one
    takes ENOUGH seconds. The first batch of a size is not counted where the next one fits into that."""
    count, sizes = min(least, most), []
    while True:
        seconds = _timed(work, count, device)
        sizes.append((count, peak(device)))
        if seconds >= ENOUGH or count >= most:
            break
        count = min(2 * count, most)
    if seconds < 10 * ENOUGH:
        seconds = min(seconds, _timed(work, count, device))
    (first, before), (last, after) = sizes[0], sizes[-1]
    slope = (after - before) / (last - first) if last > first else 0.0
    return Pace(count, seconds, after, slope)


def in_words(seconds: float) -> str:
    """Seconds in the unit that a person would choose, with two digits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {_rounded(seconds / length)} {unit}"
    return f"about {_rounded(seconds)} seconds"


def _rounded(value: float) -> str:
    """Two digits; of larger numbers the whole ones."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _timed(work: Callable[[int], object], count: int, device: torch.device) -> float:
    since = time.perf_counter()
    work(count)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - since


def peak(device: torch.device) -> int:
    """Most bytes that were in use at once so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
