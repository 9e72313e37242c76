"""Objects that are called while a model is trained."""

import signal
from pathlib import Path

import pytest
import torch
from conftest import fingerprint, tiny, trained_on, with_run

import iwm
from iwm.run_folder import RunFolder
from iwm.runtime.errors import Interrupted, UserError
from iwm.training import checkpoint, loop
from iwm.training.callbacks import HOOKS, check_callbacks
from iwm.training.step import Training


class Diary:
    """Notes every call; inherits from nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def on_start(self, state):
        self.calls.append(("start", state.step))

    def on_step(self, state):
        self.calls.append(("step", state.step))

    def on_log(self, state, line):
        assert {"step", "loss", "rankme"} <= set(line)
        line["bias"] = float(state.model.encoder.norm.bias.detach().mean())
        self.calls.append(("log", line["step"]))

    def on_checkpoint(self, state, path):
        self.calls.append(("checkpoint", checkpoint.read(path).step))

    def on_end(self, state):
        self.calls.append(("end", state.step))


def test_every_hook_is_called_at_its_time_and_numbers_join_the_line(pictures, tmp_path):
    diary = Diary()
    out = loop.pretrain(trained_on(tiny(), source=pictures, out=str(tmp_path / "run")), callbacks=[diary])
    kinds = {kind: [value for name, value in diary.calls if name == kind] for kind, _ in diary.calls}
    assert [f"on_{kind}" for kind in kinds] == ["on_start", "on_step", "on_log", "on_checkpoint", "on_end"] == [*HOOKS]
    assert kinds == {
        "start": [0],
        "step": [*range(1, 9)],
        "log": [2, 4, 6, 8],
        "checkpoint": [3, 6, 8],
        "end": [8],
    }
    lines = RunFolder(out).metric_lines()
    assert all(isinstance(line["bias"], float) and "probe_top1" not in line for line in lines)
    assert diary.calls.index(("step", 2)) + 1 == diary.calls.index(("log", 2))


def test_a_callback_that_only_looks_changes_no_weight(pictures, tmp_path):
    class Looks(iwm.Callback):
        def on_step(self, state):
            torch.rand(3)
            with torch.no_grad():
                state.model.encode(state.batch.images)

    weights = [
        fingerprint(iwm.load(loop.pretrain(trained_on(tiny(), source=pictures, out=str(tmp_path / name)), None, own)))
        for name, own in {"plain": [], "watched": [Looks()]}.items()
    ]
    assert weights[0] == weights[1]


def test_the_last_hook_is_called_however_a_run_ends(pictures, tmp_path, monkeypatch):
    class Fails(Diary):
        def on_step(self, state):
            if state.step == 3:
                raise RuntimeError("no more")

    settings = trained_on(tiny(), source=pictures, out=str(tmp_path / "run"))
    failing, watching = Fails(), Diary()
    with pytest.raises(RuntimeError, match="no more"):
        loop.pretrain(settings, callbacks=[watching, failing])
    assert (watching.calls[-1], failing.calls[-1]) == (("end", 3), ("end", 3))

    real = Training.step

    def stepping(self, batch):
        if batch.step == 4:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(Training, "step", stepping)
    diary = Diary()
    with pytest.raises(Interrupted):
        loop.pretrain(with_run(settings, out=str(tmp_path / "stopped")), callbacks=[diary])
    assert diary.calls[-2:] == [("checkpoint", 5), ("end", 5)]


class Misspelt:
    def on_logs(self, state, line): ...


@pytest.mark.parametrize(
    ("callbacks", "complaint"),
    [
        ([Diary], r"Diary is a class; give an object, Diary\(\)"),
        ([Misspelt()], r"Misspelt has on_logs, which is never called; did you mean 'on_log'\?"),
        ([print], "has none of on_start, on_step"),
    ],
)
def test_what_is_never_called_is_named_before_any_work(callbacks, complaint, tmp_path: Path):
    with pytest.raises(UserError, match=complaint):
        loop.pretrain(trained_on(tiny(), source="nowhere", out=str(tmp_path / "run")), callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_callbacks_come_in_a_list():
    with pytest.raises(UserError, match="callbacks is a Diary; give a list"):
        check_callbacks(Diary())
