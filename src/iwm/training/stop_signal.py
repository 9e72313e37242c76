"""How training is stopped from outside: Ctrl-C, SIGTERM and SIGUSR1 end it between two steps, where it can be saved.

Of several ranks any may be asked. Each step says to all who was (`Training.step`), so all end after the same one.
"""

import gc
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from iwm.data.loader import Batch
from iwm.runtime import distributed
from iwm.runtime.console import console
from iwm.runtime.errors import Interrupted, Preempted

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class _StopWaiting(BaseException):
    """Raised where a batch is waited for; an Exception might be taken for the loader's."""


class StopSignal:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a flag that ends the batches after the step, or at once while the loop
    waits for a batch, which may never come; a second Ctrl-C stops whatever is going on.

    Of several ranks none stops by itself: `agreed` says what all know (0: go on, 1: Ctrl-C, 2: another signal).
    """

    pending = False
    waiting = False
    by_scheduler = False

    def __init__(self, agreed: Callable[[], int] = lambda: 0) -> None:
        self.agreed = agreed

    @property
    def vote(self) -> int:
        """What this process was asked: 0 to go on, 1 to stop by Ctrl-C, 2 by a scheduler."""
        return (2 if self.by_scheduler else 1) if self.pending else 0

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches until a stop is asked for; of several ranks, until all have `agreed`."""
        coming, ranks = iter(loader), distributed.size()
        try:
            while not (self.pending if ranks == 1 else self.agreed()):
                distributed.tick()
                self.waiting = ranks == 1
                batch = next(coming)
                self.waiting = False
                yield batch
        except _StopWaiting:
            return
        finally:
            self.waiting = False

    def exception(self, sentence: str) -> Interrupted:
        """What the run ends with: the kind tells the exit code."""
        return Preempted(sentence) if max(self.vote, self.agreed()) == 2 else Interrupted(sentence)

    def __enter__(self) -> "StopSignal":
        self.pending = self.by_scheduler = False
        self.before: dict[int, Any] = {}
        try:
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:
            self.before = {}  # not in the main thread: whoever runs us handles signals
        gc.collect()
        gc.freeze()  # the model and data live as long as the loop: no need to look through them again and again
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # schedulers repeat themselves, and ask every process of a job
        self.pending, self.by_scheduler = True, number != signal.SIGINT
        console.print("Stopping, saving...")
        if self.waiting:
            self.waiting = False
            raise _StopWaiting

    def __exit__(self, *exc: object) -> None:
        gc.unfreeze()
        for number, handler in self.before.items():
            signal.signal(number, handler)
