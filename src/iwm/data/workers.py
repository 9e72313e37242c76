"""Decoding threads and processes: how their pictures reach the trainer, and how they end.

Pictures go through shared memory (/dev/shm), which containers keep small: 64 MB under Docker. Where it is full they go
through a pipe, slower but whole: a part that got lost on the way would be waited for without end.
"""

import contextlib
import functools
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from iwm.data.decode import BrokenImage
from iwm.runtime.errors import UserError

log = logging.getLogger("iwm")

PATIENCE = 1.0
"""Seconds in which processes that are told to end must do so."""


@dataclass(frozen=True)
class Part:
    """Some rows of a batch."""

    step: int
    indices: Int64[np.ndarray, " b"]
    crops: UInt8[Tensor, "b 3 size size"]
    broken: list[BrokenImage]
    """Images newly found broken by whoever made this part."""
    others: UInt8[Tensor, "b 3 size size"] | None = None

    def pin_memory(self) -> "Part":
        """The same with pictures in pinned memory, from where a GPU fetches them by itself."""
        others = None if self.others is None else self.others.pin_memory()
        return replace(self, crops=self.crops.pin_memory(), others=others)

    def on(self, device: torch.device) -> "Part":
        """The same with pictures on the device; of pinned ones nobody waits for the copy."""
        others = None if self.others is None else self.others.to(device, non_blocking=True)
        return replace(self, crops=self.crops.to(device, non_blocking=True), others=others)


@dataclass(frozen=True)
class PipedPart:
    """The same for a pipe: pictures as arrays."""

    step: int
    indices: Int64[np.ndarray, " b"]
    crops: UInt8[np.ndarray, "b 3 size size"]
    broken: list[BrokenImage]
    others: UInt8[np.ndarray, "b 3 size size"] | None = None


def ahead(thread: ThreadPoolExecutor, make: Callable[[Any], Any], tasks: Iterator[Any]) -> Iterator[Any]:
    """`map`, of which the next two results are prepared meanwhile."""
    coming = [thread.submit(make, task) for task in itertools.islice(tasks, 2)]
    try:
        while coming:
            result = coming.pop(0).result()
            coming.extend(thread.submit(make, task) for task in itertools.islice(tasks, 1))
            yield result
    finally:
        for one in coming:
            one.cancel()


def parts_of(loader: "DataLoader[Part]") -> Iterator[Part]:
    """The parts that a loader's processes send; when iteration ends, however, so do they.

    The loader collates with `shared` and starts its processes with `prepare`. Raises UserError when they cannot be
    started, and when one is ended from outside.
    """
    mend = "give --speed.workers 0, or fewer than now"
    try:
        sent = iter(loader)
    except OSError as error:
        raise UserError(f"Decoding processes cannot be started ({error.strerror or error}); {mend}.") from None
    try:
        yield from map(_received, sent)
    except (RuntimeError, ConnectionError, EOFError) as error:  # its end is seen first, or its silence
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        raise UserError(f"A decoding process was ended from outside, often for memory ({reason}); {mend}.") from None
    finally:
        _end(sent)


def shared(part: Part) -> Part | PipedPart:
    """In a process: a part on its way to the trainer, its pictures in shared memory where there is room."""
    try:
        for pictures in (part.crops, part.others):
            if pictures is not None:
                pictures.share_memory_()
    except RuntimeError:  # no space left, no such folder, too many open files
        others = None if part.others is None else part.others.numpy()
        return PipedPart(part.step, part.indices, part.crops.numpy(), part.broken, others)
    return part


def _received(part: Part | PipedPart) -> Part:
    if isinstance(part, Part):
        return part
    _say_that_memory_is_full()
    others = None if part.others is None else torch.from_numpy(part.others)
    return Part(part.step, part.indices, torch.from_numpy(part.crops), part.broken, others)


@functools.cache
def _say_that_memory_is_full() -> None:
    log.warning(
        "Shared memory (/dev/shm) is full: pictures take a slower way. Give the container more (docker --shm-size 2g), "
        "or --speed.workers 0."
    )


def prepare(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal, a scheduler's SIGTERM every process of the job; the trainer must
    still get its batches while it winds up, and ends its processes itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # what ends otherwise is taken for a failure by the trainer's DataLoader


def _end(sent: Iterator[Any]) -> None:
    """End the processes of a DataLoader's iterator, also those that wait for a disk that does not answer."""
    processes = list(cast(Any, sent)._workers)
    until = time.monotonic() + PATIENCE
    for process in processes:
        with contextlib.suppress(RuntimeError, ProcessLookupError):  # the DataLoader's, when a process has failed
            if process.is_alive() and hasattr(signal, "SIGUSR1"):
                os.kill(process.pid, signal.SIGUSR1)
    for process in processes:
        with contextlib.suppress(RuntimeError):
            process.join(max(0.0, until - time.monotonic()))
        with contextlib.suppress(RuntimeError):
            if process.is_alive():
                process.kill()
                process.join(PATIENCE)
    with contextlib.suppress(RuntimeError):
        cast(Any, sent)._shutdown_workers()
