"""The one thread in which the model is asked: questions in their order, pieces of background work between them."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError

T = TypeVar("T")
log = logging.getLogger("iwm")

MOST_WAITING = 64
"""Questions that may wait; a further one is refused."""


class Busy(UserError):
    """Too many questions wait already."""


class Worker:
    """One thread, so that questions do not fight for the cores and memory stays that of one of them.

    `background` does a piece of work and returns whether more is left; it runs whenever no question waits, and one
    piece between questions.
    """

    def __init__(self, session: Session, background: Callable[[], bool]) -> None:
        self.session, self.background = session, background
        self._thread = ThreadPoolExecutor(1, "iwm-page")
        self._waiting, self._working, self._closed = 0, False, False

    async def ask(self, question: Callable[..., T], *values: object) -> T:
        """The answer of `question(*values)`, asked in the thread. Raises Busy, and what the question raises."""
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{self._waiting} questions wait already; ask again in a moment.")
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(self._in_session, question, *values))
        finally:
            self._waiting -= 1
            self.work_on()

    def work_on(self) -> None:
        """Have the background work go on, if there is some left."""
        if not self._working and not self._closed:
            self._working = True
            self._thread.submit(self._piece)

    def close(self) -> None:
        """End the thread when its present piece is done."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _in_session(self, question: Callable[..., T], *values: object) -> T:
        with self.session.autocast():
            return question(*values)

    def _piece(self) -> None:
        more = False
        try:
            more = self._in_session(self.background)
        except Exception:  # nobody waits for the answer: say it where the page was started
            log.exception("The page could not prepare its images")
        if more and not self._closed:
            self._thread.submit(self._piece)
        else:
            self._working = False
