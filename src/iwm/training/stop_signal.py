"""How training is stopped from outside: Ctrl-C and SIGTERM end it between two steps, where it can be saved."""

import gc
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from iwm.data.loader import Batch
from iwm.runtime.console import console


class _StopWaiting(BaseException):
    """Raised where a batch is waited for; an Exception might be taken for the loader's."""


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag that ends the batches after the step, or at once while the loop waits for a
    batch, which may never come; a second Ctrl-C stops whatever is going on."""

    pending = False
    waiting = False

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches until a stop is asked for."""
        coming = iter(loader)
        try:
            while not self.pending:
                self.waiting = True
                batch = next(coming)
                self.waiting = False
                yield batch
        except _StopWaiting:
            return
        finally:
            self.waiting = False

    def __enter__(self) -> "StopSignal":
        self.pending = False
        self.before: dict[int, Any] = {}
        try:
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self.before = {}  # not in the main thread: whoever runs us handles signals
        gc.collect()
        gc.freeze()  # the model and data live as long as the loop: no need to look through them again and again
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
        console.print("Stopping, saving...")
        if self.waiting:
            self.waiting = False
            raise _StopWaiting

    def __exit__(self, *exc: object) -> None:
        gc.unfreeze()
        for number, handler in self.before.items():
            signal.signal(number, handler)
