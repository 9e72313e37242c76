"""Ranks watch one another: one that fails, dies or hangs ends the job, with one sentence that names it.

Every rank has a thread that writes a sign of life into the common store and looks for a failure there. Rank 0's also
reads the signs of the others. A second thread sees when the first gets no answer: a network that is cut says nothing.
Who is blocked in a collective cannot be woken, so a thread that learns of a failure ends its process; all files are
written whole or not at all.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from iwm.runtime.console import console
from iwm.runtime.launch import Place

BEAT, SILENCE, WAITING = 2.0, 20.0, 45.0
"""Seconds between signs of life; without one until a rank is given up; that a rank may keep the others waiting."""
LONGER = 4
"""Or so many times as long as a part of the same work took on any rank, where that is more."""
BEFORE_FIRST_BEAT = "[0, 0, false, 0, 0]"
"""The sign of life of a rank that has come; see `RankWatch.sign`."""
FAILURE, HEARD = "failure", "heard"

Store = Any
"""torch.distributed's Store, a dictionary that all ranks share."""


class RankWatch(threading.Thread):
    """One rank's sign of life, and its ear for the failure of another. `connect` opens a store of this thread's own,
    whose calls end within `SILENCE`; `mend` says what to do then."""

    def __init__(
        self, place: Place, connect: Callable[[], Store], mend: str = "", leave: Callable[[int], Any] = os._exit
    ) -> None:
        super().__init__(name="iwm-ranks", daemon=True)
        self.place, self.connect, self.mend, self.leave = place, connect, mend, leave
        self.arrivals = self.parts = 0
        self.busy, self.longest = False, 0.0
        self._latest_part = 0.0
        self.failure: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._answered = time.monotonic()
        self._seen: dict[tuple[str, int], tuple[float | None, float]] = {}

    # ---- the working thread's side -----------------------------------------------------------------------------

    def arrive(self) -> None:
        """This rank has come to where all ranks come: whoever has not come yet keeps it waiting."""
        self.arrivals += 1

    def advance(self) -> None:
        """A part of the work is done: the others may wait for the next one, but not for long."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self._latest_part) if self.busy else 0.0
        self._latest_part = now
        self.parts += 1
        self.busy = True

    def tick(self) -> None:
        """A part is done that ends where all ranks come."""
        self.arrive()
        self.advance()

    def rest(self) -> None:
        """What comes next may take its time: a rank that saves keeps the others waiting."""
        self.busy = False

    @property
    def sign(self) -> str:
        """What the others get to know: the time, arrivals, whether busy, parts, and seconds of the longest one."""
        return json.dumps([time.monotonic(), self.arrivals, self.busy, self.parts, self.longest])

    def stop(self) -> None:
        self._ended.set()
        self.join()

    # ---- the thread's side -------------------------------------------------------------------------------------

    def run(self) -> None:
        self._answered = time.monotonic()
        if self.place.rank:
            threading.Thread(target=self._wait_for_answers, name="iwm-ranks-answers", daemon=True).start()
        store = self.connect()
        lost = 0.0
        while not self._ended.is_set():
            try:
                self._beat(store)
                self._answered, lost = time.monotonic(), 0.0
            except RuntimeError:  # the store is rank 0's
                now = time.monotonic()
                lost = lost or now
                if now - lost > BEAT or self.place.rank == 0:
                    self._of_first_rank()
                    return
            self._ended.wait(BEAT)

    def _wait_for_answers(self) -> None:
        while not self._ended.wait(BEAT):
            if time.monotonic() - self._answered > SILENCE and self.failure is None:
                self._of_first_rank()
                return

    def _beat(self, store: Store) -> None:
        store.set(sign_of(self.place.rank), self.sign)
        if self.place.rank == 0:
            self._look(store)
        if store.check([FAILURE]):
            self._hear(store, json.loads(store.get(FAILURE)))

    def _look(self, store: Store) -> None:
        """Rank 0: who has given no sign for long, and who keeps the others waiting?"""
        now = time.monotonic()
        texts = store.multi_get([sign_of(rank) for rank in range(self.place.size)])
        signs = [json.loads(text) for text in texts]
        lead = max(arrivals for _, arrivals, *_ in signs)
        patience = max(WAITING, LONGER * max(longest for *_, longest in signs))
        for rank, (beat, arrivals, busy, parts, _) in enumerate(signs):
            late = busy and arrivals < lead
            if now - self._since("beat", rank, beat, now) > SILENCE:
                reason = f"has died or lost its network: no sign of life for {SILENCE:.0f} s."
            elif now - self._since("late", rank, parts if late else now, now) > patience:
                reason = f"hangs: the others have waited for it for {patience:.0f} s."
            else:
                continue
            post(store, rank, f"{store.get(name_of(rank)).decode()} {reason}", 1, teller="0")

    def _since(self, what: str, rank: int, value: float, now: float) -> float:
        """When this value of a rank was seen first."""
        latest, at = self._seen.get((what, rank), (None, now))
        self._seen[what, rank] = (value, at if value == latest else now)
        return self._seen[what, rank][1]

    def _hear(self, store: Store, failure: dict[str, Any]) -> None:
        """Another rank has failed, or was found dead: say so where nobody else does, and end this process."""
        self.failure = failure
        if failure["rank"] == self.place.rank and not failure["teller"]:
            return  # this rank's training thread has said so itself, and waits until all have heard
        if failure["teller"] == str(self.place.rank):
            self._say(failure["sentence"])
        with contextlib.suppress(RuntimeError):  # the store went with rank 0, which waited for all
            store.add(HEARD, 1)
            if self.place.rank == 0:  # the failing rank comes last, unless it is dead
                wait_for(store, self.place.size - bool(failure["teller"]))
        self._end(failure["code"])

    def _of_first_rank(self) -> None:
        if self._ended.is_set():
            return
        self.failure = {"code": 1}
        if self.place.local_rank == 0 or self.place.rank == 1:  # one of a machine is enough
            self._say(f"rank 0 does not answer {self.place.name}: it has died, or the network between them.")
        self._end(1)

    def _say(self, sentence: str) -> None:
        print(f"{sentence[0].upper()}{sentence[1:]} All ranks stop; {self.mend}", file=sys.stderr)

    def _end(self, code: int) -> None:
        if console.is_terminal:
            console.show_cursor(True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        self.leave(code)


def wait_for(store: Store, count: int) -> None:
    """Wait, not for long, until so many ranks have heard of the failure."""
    until = time.monotonic() + 4 * BEAT
    while time.monotonic() < until and store.add(HEARD, 0) < count:
        time.sleep(0.05)


def sign_of(rank: int) -> str:
    return f"sign/{rank}"


def name_of(rank: int) -> str:
    return f"name/{rank}"


def post(store: Store, rank: int, sentence: str, code: int, teller: str = "") -> bool:
    """Tell all ranks that one has failed; only the first failure counts. Returns whether this was it.

    `teller` is the rank that says the sentence; empty: the failing rank does so itself.
    """
    content = json.dumps({"rank": rank, "sentence": sentence, "code": code, "teller": teller})
    return store.compare_set(FAILURE, "", content).decode() == content
