"""A run's lines of metrics and its pictures, sent to trackers while it is trained.

Every tracker has a thread of its own, so training waits for none. What could not be sent is tried again with the next
line, in order; a failure is said once and counted, and ends no training. At the end what is refused is set aside, and
the rest is sent. RUN/trackers/NAME.json says which steps a tracker was told: no step is sent twice, and a run that goes
on goes on in the same run of the tracker. A tracker that joins later is told everything from the first line on.
"""

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iwm import config
from iwm.run_folder import RunFolder, settings_of_weights
from iwm.runtime import files
from iwm.runtime.bounds import finite
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.runtime.fields import flatten, to_dict
from iwm.runtime.files import sha256_of
from iwm.training.callbacks import Callback, State
from iwm.training.trackers import Tracker, trackers_of

PATIENCE = 60.0
"""Seconds that the end of a run waits for what is not sent yet."""
FREE = ("optim.epochs", "optim.steps", "recipe")
"""Settings of which a run may go on with other values, beside the groups speed and run."""


@dataclass
class Account:
    """RUN/trackers/NAME.json: what one tracker was told."""

    path: Path
    settings: str = ""
    """Mark of the settings of the run that it was told of."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The tracker's own, as the id of its run."""
    step: int = -1
    """The last step that was sent."""
    missing: list[int] = field(default_factory=list)
    """Steps up to that one which could not be sent."""
    files: dict[str, str] = field(default_factory=dict)
    """What else was sent, by name: the content's hash."""

    @classmethod
    def read(cls, path: Path) -> "Account":
        """An empty one where there is no file. Raises UserError when it is damaged."""
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, **json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged; delete it, and the tracker begins a new run.") from None

    def write(self) -> None:
        content = {name: value for name, value in vars(self).items() if name != "path"}
        files.write_text(self.path, json.dumps(content, indent=1) + "\n")


Job = Callable[[Tracker], None]


class Sender:
    """Sends to one tracker, in a thread of its own, one thing after the other."""

    def __init__(self, kind: type[Tracker], run: RunFolder, settings: config.Config, *, anew: bool = False) -> None:
        """`anew`: the run begins, so that what was told of other settings in this folder is another run's."""
        self.account, mark = Account.read(run.tracker(kind.name)), mark_of(settings)
        if anew and self.account.settings not in ("", mark):
            self.account = Account(self.account.path)
        self.account.settings = self.account.settings or mark
        self.name, self.run = kind.name, run
        self.tracker = kind(run, settings, self.account.memory)
        self.tracker.complete = is_complete(run, settings)
        self.waiting: deque[tuple[str, Job]] = deque()  # each with its name
        self.refused: list[tuple[str, str]] = []  # what was set aside at the end, and why
        self.queued = self.account.step  # the last step that is sent or waits,
        self.absent = set(self.account.missing)  # but for these
        self.failures, self.reason = 0, ""
        self.opened = self.ending = False
        self.wake = threading.Condition()
        self.thread = threading.Thread(target=self._work, name=f"iwm {kind.name}", daemon=True)

    # ---- from training's side ----

    def begin(self) -> None:
        """Open the tracker now. Raises UserError where it cannot be."""
        try:
            self._open()
        except Exception as error:  # whatever the library raises
            raise UserError(
                f"{self.name} cannot begin ({_reason(error)}); {self.tracker.mend}, or leave it out of run.report_to."
            ) from error

    def start(self) -> None:
        """Let the thread send, what was not told yet first: the gallery, and the lines of metrics."""
        gallery = self.run.gallery
        if gallery.is_file():
            self.file("gallery", gallery, lambda tracker: tracker.picture("gallery", gallery, 0))
        for line in self.run.metric_lines():
            self.line(line)
        self.thread.start()

    def line(self, line: Mapping[str, Any]) -> None:
        """Send the finite numbers of a line of metrics, unless its step was sent before."""
        step = line["step"]
        if step <= self.queued and step not in self.absent:
            return
        self.queued = max(self.queued, step)
        self.absent.discard(step)
        values = {name: float(value) for name in line if name != "step" and (value := finite(line[name])) is not None}

        def send(tracker: Tracker) -> None:
            account = self.account
            before, missing = account.step, [one for one in account.missing if one != step]
            account.step, account.missing = max(before, step), missing
            account.write()  # first: killed in between, a step is missing there, but none is sent twice
            try:
                tracker.scalars(step, values)
            except BaseException:
                account.step, account.missing = before, [*missing, step]
                account.write()
                raise

        self._add(f"step {step}", send)

    def file(self, name: str, path: Path, send: Job) -> None:
        """Do `send` unless the file was sent under this name with the same content."""
        mark = sha256_of(path)
        if self.account.files.get(name) == mark:
            return

        def once(tracker: Tracker) -> None:
            send(tracker)
            self.account.files[name] = mark
            self.account.write()

        self._add(name, once)

    def end(self, seconds: float) -> str:
        """Let the thread send what waits, for some time at most, and close the tracker; says what was not sent."""
        with self.wake:
            self.ending = True
            self.wake.notify()
        self.thread.join(seconds)
        with self.wake:
            left = [*(name for name, _ in self.refused), *(name for name, _ in self.waiting)]
        if not left and not self.thread.is_alive():
            return ""
        why = self.refused[0][1] if self.refused else self.reason or f"not done within {seconds:.0f} s"
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        return (
            f"{len(left)} {'line or picture was' if len(left) == 1 else 'lines and pictures were'} not sent to "
            f"{self.name} ({why}): {', '.join(left[:3])}{more}; send them later with `iwm report {self.run.path} "
            f"--report-to {self.name}`."
        )

    def _add(self, name: str, job: Job) -> None:
        with self.wake:
            self.waiting.append((name, job))
            self.wake.notify()

    # ---- the thread ----

    def _open(self) -> None:
        if not self.opened:
            self.tracker.open()
            self.opened = True
            self.account.write()

    def _work(self) -> None:
        known = 0  # how much waited at the latest failure: it is tried again when there is more
        while True:
            with self.wake:
                while not self.ending and len(self.waiting) <= known:
                    self.wake.wait()
                ending, count = self.ending, len(self.waiting)
            known = 0 if self._send_waiting() else count
            if ending:
                self.close()
                return

    def _send_waiting(self) -> bool:
        """Send what waits, in order; False at the first failure, after which it goes on waiting. At the end what is
        refused is set aside, and the others are tried."""
        while self.waiting:
            name, job = self.waiting[0]
            refused = []
            try:
                self._open()
                job(self.tracker)
            except Exception as error:  # whatever the library raises; training goes on
                self._failed(error)
                if not (self.opened and self.ending):
                    return False
                refused = [(name, self.reason)]
            with self.wake:
                self.refused += refused
                self.waiting.popleft()
        return True

    def close(self) -> None:
        """Close the tracker where it is open; of a sender that was started its thread does so."""
        if self.opened:
            try:
                self.tracker.close()
                self.account.write()
            except Exception as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.reason = _reason(error)
        if self.failures == 1:
            console.print(
                f"[yellow]{self.name} cannot be sent to ({self.reason}); training goes on, and metrics.jsonl has all.",
                soft_wrap=True,
            )


class Reporting(Callback):
    """Sends every line of metrics, and the gallery, to the trackers of run.report_to."""

    def __init__(self, run: RunFolder, settings: config.Config) -> None:
        self.run, self.settings = run, settings
        self.senders: list[Sender] = []
        self.complete = False

    def on_start(self, state: State) -> None:
        """Raises UserError where a tracker of a run that begins cannot; of one that goes on it is tried again later."""
        anew = state.step == 0
        kinds = trackers_of(self.settings.run.report_to)
        senders = [Sender(kind, self.run, self.settings, anew=anew) for kind in kinds]
        begin(senders if anew else [])
        for sender in senders:
            sender.start()
        self.senders = senders

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        for sender in self.senders:
            sender.line(line)

    def on_checkpoint(self, state: State, path: Path) -> None:
        self.complete = state.final  # the last line may still have ended the run as diverged

    def on_end(self, state: State) -> None:
        for sender in self.senders:
            sender.tracker.complete = self.complete
        for sentence in end(self.senders):
            console.print(f"[yellow]{sentence}", soft_wrap=True)


def begin(senders: Sequence[Sender]) -> None:
    """Open all. Raises UserError when one cannot be opened; the others are closed then."""
    for sender in senders:
        try:
            sender.begin()
        except UserError:
            for other in senders:
                other.close()
            raise


def end(senders: Iterable[Sender]) -> list[str]:
    """End all, which together have PATIENCE seconds; says what was not sent."""
    until = time.monotonic() + PATIENCE
    return [sentence for sender in senders if (sentence := sender.end(max(1.0, until - time.monotonic())))]


def is_complete(run: RunFolder, settings: config.Config) -> bool:
    """Whether the run has got to the last step of these settings: then its weights are written, which hold theirs."""
    length = settings_of_weights(str(run.path.absolute())).get("optim") or {}
    return (length.get("epochs"), length.get("steps") or 0) == (settings.optim.epochs, settings.optim.steps)


def mark_of(settings: config.Config) -> str:
    """What tells the runs that a folder holds one after the other apart: all that is learned, and the seed."""
    flat = flatten(to_dict(settings))
    learned = {k: v for k, v in flat.items() if k.split(".")[0] not in ("speed", "run") and k not in FREE}
    return hashlib.sha256(json.dumps({**learned, "seed": settings.run.seed}, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= 160 else text[:159] + "…"
