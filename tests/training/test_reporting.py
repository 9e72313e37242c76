"""Trackers are told every line once, whatever happens to them or to the run; training never waits, never fails."""

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import tiny, trained_on, with_run

import iwm
from iwm.run_folder import RunFolder
from iwm.runtime.errors import Interrupted, UserError
from iwm.training import loop, reporting
from iwm.training.reporting import Account, Sender, mark_of
from iwm.training.step import Training
from iwm.training.trackers import TRACKERS, Tracker


class Planted(Tracker):
    """Notes what it is sent, under the id of its run."""

    name, mend = "planted", "plant it again"
    told: ClassVar[dict[str, list[Any]]] = {}
    fails: ClassVar[set[Any]] = set()
    """What it raises at: "open", "close", steps and names of pictures."""
    waits: ClassVar[threading.Event] = threading.Event()
    ends: ClassVar[list[bool]] = []
    """Whether training was complete, of every close."""

    def open(self):
        self._maybe("open")
        self.memory.setdefault("id", f"run {len(self.told)}")
        self.told.setdefault(self.memory["id"], []).append("open")

    def scalars(self, step, values):
        self._maybe(step)
        assert "step" not in values
        assert all(isinstance(value, float) for value in values.values())
        self.told[self.memory["id"]].append(step)

    def picture(self, name, path, step):
        self._maybe(name)
        self.told[self.memory["id"]].append((name, step))

    def page(self, path, words, step):
        self.told[self.memory["id"]].append((Path(path).name, words, step))

    def close(self):
        self._maybe("close")
        self.told[self.memory["id"]].append("close")
        self.ends.append(self.complete)

    def _maybe(self, what):
        assert self.waits.wait(30)
        if what in self.fails:
            raise ConnectionError(f"no network at {what}.\nmore lines")


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.setitem(TRACKERS, "planted", Planted)
    monkeypatch.setattr(Planted, "told", {})
    monkeypatch.setattr(Planted, "fails", set())
    monkeypatch.setattr(Planted, "ends", [])
    Planted.waits.set()
    return Planted


@pytest.fixture
def settings(pictures, tmp_path):
    return with_run(trained_on(tiny(), source=pictures, out=str(tmp_path / "run")), report_to="planted")


def stopped_at(monkeypatch, step: int) -> None:
    """Ctrl-C in that step, once."""
    real = Training.step

    def stepping(self, batch):
        if batch.step == step:
            monkeypatch.setattr(Training, "step", real)
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(Training, "step", stepping)


def test_every_line_and_the_gallery_are_sent_once(settings, planted):
    run = RunFolder(loop.pretrain(settings))
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, 6, 8, "close"]}
    assert [line["step"] for line in run.metric_lines()] == [2, 4, 6, 8]


def test_a_run_that_goes_on_goes_on_in_the_same_place(settings, planted, monkeypatch):
    stopped_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        loop.pretrain(settings)
    loop.pretrain(settings)
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, "close", "open", 6, 8, "close"]}


def test_a_step_that_is_done_again_after_a_crash_is_not_sent_again(settings, planted, monkeypatch):
    """The checkpoint is of step 3, step 4 was sent, then the machine went down: the line of step 4 is written anew."""

    class Dies(iwm.Callback):
        def on_step(self, state):
            if state.step == 5:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        loop.pretrain(settings, callbacks=[Dies()])
    run = RunFolder(loop.pretrain(settings))
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, "close", "open", 6, 8, "close"]}
    assert [line["step"] for line in run.metric_lines()] == [2, 4, 6, 8]


def test_a_process_that_is_killed_while_it_sends_never_sends_that_step_twice(settings, tmp_path, planted):
    run = RunFolder(tmp_path / "run")
    sender = Sender(planted, run, settings)
    sender.begin()

    class Killed(BaseException):
        pass

    def sent_and_killed(step, values):
        sender.tracker.__class__.scalars(sender.tracker, step, values)
        assert Account.read(run.tracker("planted")).step == step
        raise Killed

    sender.tracker.scalars = sent_and_killed
    sender.line({"step": 2, "loss": 1.0})
    with pytest.raises(Killed):
        sender._send_waiting()
    assert planted.told["run 0"] == ["open", 2]


def test_a_tracker_that_joins_later_is_told_everything(settings, planted):
    loop.pretrain(with_run(settings, report_to=""))
    assert planted.told == {}
    loop.pretrain(replace(with_run(settings, log_every=4), optim=replace(settings.optim, epochs=3)))
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, 6, 8, 12, "close"]}


def test_a_failure_in_the_middle_is_said_once_and_made_good_with_the_next_line(settings, planted, capsys):
    class Network(iwm.Callback):
        def on_log(self, state, line):
            time.sleep(0.05)  # so that the line before has been tried
            planted.fails = {2, 4} if state.step < 6 else set()

    planted.fails = {2}
    run = RunFolder(loop.pretrain(settings, callbacks=[Network()]))
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, 6, 8, "close"]}
    printed = " ".join(capsys.readouterr().err.split())
    sentence = "planted cannot be sent to (no network at 2); training goes on, and metrics.jsonl has all."
    assert printed.count(sentence) == printed.count("no network") == 1
    assert len(run.metric_lines()) == 4


def test_what_is_refused_is_named_stops_nothing_else_and_comes_with_the_next_start(settings, planted, capsys):
    planted.fails = {4, "gallery", "close"}
    loop.pretrain(settings)
    assert planted.told == {"run 0": ["open", 2, 6, 8]}
    printed = " ".join(capsys.readouterr().err.split())
    assert "2 lines and pictures were not sent to planted (no network at gallery): gallery, step 4; send" in printed
    assert f"iwm report {settings.run.out} --report-to planted" in printed
    for fails, sent in (({4}, [("gallery", 0)]), (set(), [4]), (set(), [])):
        planted.fails, before = fails, len(planted.told["run 0"])
        sender = Sender(planted, RunFolder(Path(settings.run.out)), settings)
        sender.begin()
        sender.start()
        assert sender.end(10).partition(";")[0] == (
            "1 line or picture was not sent to planted (no network at 4): step 4" if fails else ""
        )
        assert planted.told["run 0"][before:] == ["open", *sent, "close"]


def test_a_step_that_was_refused_and_is_done_again_is_sent_once(settings, planted, tmp_path):
    """Step 4 was refused and 6 sent, then the run went on from a checkpoint before both."""
    run = RunFolder(tmp_path / "run")
    planted.fails = {4}
    for steps in ((2, 4, 6), (4, 6, 8)):
        sender = Sender(planted, run, settings)
        sender.start()
        for step in steps:
            sender.line({"step": step, "loss": 1.0})
        assert ("step 4" in sender.end(10)) == bool(planted.fails)
        planted.fails = set()
    assert planted.told == {"run 0": ["open", 2, 6, "close", "open", 4, 8, "close"]}
    assert Account.read(run.tracker("planted")).missing == []


def test_a_tracker_that_does_not_open_again_is_tried_once_at_the_end(settings, planted, tmp_path):
    planted.fails = {"open"}
    sender = Sender(planted, RunFolder(tmp_path / "run"), settings)
    for step in range(2, 12, 2):
        sender.line({"step": step, "loss": 1.0})
    sender.ending = True
    sender.start()
    said = sender.end(10)
    assert said.startswith(
        "5 lines and pictures were not sent to planted (no network at open): step 2, step 4, step 6 "
    )
    assert "step 6 and 2 more; send them later" in said
    assert sender.failures == 1


def test_training_does_not_wait_for_a_tracker_that_hangs(settings, planted, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "PATIENCE", 0.0)

    real = Sender.begin
    monkeypatch.setattr(Sender, "begin", lambda self: (real(self), planted.waits.clear()))
    start = time.monotonic()
    run = RunFolder(loop.pretrain(settings))
    assert time.monotonic() - start < 20
    assert len(run.metric_lines()) == 4
    assert "5 lines and pictures were not sent to planted (not done within 1 s)" in " ".join(
        capsys.readouterr().err.split()
    )
    planted.waits.set()


def test_a_run_that_begins_says_that_a_tracker_cannot(settings, planted):
    planted.fails = {"open"}
    with pytest.raises(
        UserError, match=r"planted cannot begin \(no network at open\); plant it again, or leave it out"
    ):
        loop.pretrain(settings)


def test_a_tracker_is_closed_when_another_one_cannot_begin(settings, planted, monkeypatch):
    class Absent(Planted):
        name = "absent"

        def open(self):
            raise ConnectionError("no network")

    monkeypatch.setitem(TRACKERS, "absent", Absent)
    with pytest.raises(UserError, match="absent cannot begin"):
        loop.pretrain(with_run(settings, report_to="planted,absent"))
    assert planted.told == {"run 0": ["open", "close"]}
    assert planted.ends == [False]


def test_a_tracker_is_told_whether_the_last_step_was_reached(settings, planted, monkeypatch):
    """By training, and by `iwm report` of a run that was stopped, or whose last line ended it as diverged."""

    class Diverges(iwm.Callback):
        def on_log(self, state, line):
            if state.final:
                raise UserError("Training diverged")

    def closed_by_a_report():
        run = RunFolder(Path(settings.run.out))
        sender = Sender(planted, run, run.settings())
        sender.begin()
        sender.close()

    stopped_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        loop.pretrain(settings)
    closed_by_a_report()
    with pytest.raises(UserError, match="diverged"):
        loop.pretrain(settings, callbacks=[Diverges()])
    closed_by_a_report()
    assert planted.ends == [False] * 4
    loop.pretrain(settings)
    closed_by_a_report()
    assert planted.ends[4:] == [True, True]
    stopped_at(monkeypatch, 10)
    with pytest.raises(Interrupted):
        loop.pretrain(replace(settings, optim=replace(settings.optim, epochs=3)))
    closed_by_a_report()
    assert planted.ends[6:] == [False, False]


def test_a_run_that_goes_on_does_so_without_its_tracker(settings, planted, monkeypatch):
    stopped_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        loop.pretrain(settings)
    planted.fails = {"open"}
    assert len(RunFolder(loop.pretrain(settings)).metric_lines()) == 4
    assert planted.told == {"run 0": ["open", ("gallery", 0), 2, 4, "close"]}


def test_other_settings_in_the_same_folder_are_another_run(settings, planted, tmp_path):
    """Of a run that begins anew, because it was stopped before its first checkpoint."""
    run = RunFolder(tmp_path / "run")
    for options, place in (({}, "run 0"), ({"log_every": 4}, "run 0"), ({"seed": 3}, "run 1")):
        sender = Sender(planted, run, with_run(settings, **options), anew=True)
        sender.begin()
        sender.start()
        sender.line({"step": 2, "loss": 1.0, "rankme": float("nan"), "precision": "fp32"})
        assert sender.end(30) == ""
        assert list(planted.told)[-1] == place
    assert planted.told == {"run 0": ["open", 2, "close", "open", "close"], "run 1": ["open", 2, "close"]}


def test_names_and_libraries_are_checked_before_any_work(settings, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"run.report_to is 'tensorbord'; did you mean 'tensorboard'\?"):
        loop.pretrain(with_run(settings, report_to="planted,tensorbord"))

    class Absent(Planted):
        name, library = "absent", "no_such_library"

    monkeypatch.setitem(TRACKERS, "absent", Absent)
    with pytest.raises(UserError, match=r"names absent, whose library is not installed; install: pip install no_such"):
        loop.pretrain(with_run(settings, report_to="absent"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_account_is_named(settings, planted, tmp_path):
    path = RunFolder(tmp_path / "run").tracker("planted")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=r"planted.json is damaged; delete it"):
        Sender(planted, RunFolder(tmp_path / "run"), settings)
    path.write_text(json.dumps({"step": 3}))
    assert Account.read(path).step == 3


def test_the_mark_is_that_of_what_is_learned(settings):
    assert mark_of(settings) == mark_of(with_run(settings, log_every=7, report_to=""))
    assert mark_of(settings) != mark_of(with_run(settings, seed=1))
