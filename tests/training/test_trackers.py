"""The real libraries in their offline modes keep what a run sent, and a run that goes on goes on in the same place."""

import importlib
import importlib.util
import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny
from PIL import Image

from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.training.reporting import Sender
from iwm.training.trackers import TRACKERS, Tracker, register_tracker, trackers_of

LINES = [{"step": step, "loss": 1 / step, "rankme": 2.0, "precision": "fp32"} for step in (2, 4, 6, 8)]


def needs(library: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a gallery and a page."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    Image.new("RGB", (40, 20), (200, 100, 50)).save(folder.gallery)
    folder.report.write_text("<h1>Report</h1>")
    return folder


def told_in_two_parts(name: str, run: RunFolder) -> None:
    """Two processes of a run, of which the first is stopped, and the second does step 4 again, then the report."""
    for lines in (LINES[:2], LINES[1:]):
        sender = Sender(TRACKERS.find(name), run, tiny(), anew=lines[0]["step"] == 2)
        sender.begin()
        sender.start()
        for line in lines:
            sender.line(line)
        if lines[-1]["step"] == 8:
            sender.file("report", run.report, lambda tracker: tracker.page(run.report, "healthy: it learns", 8))
        sender.tracker.complete = lines[-1]["step"] == 8
        assert sender.end(60) == ""
        assert sender.failures == 0, sender.reason


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard(run):
    told_in_two_parts("tensorboard", run)
    reading: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = run.tensorboard.iterdir()
    events = reading.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [(one.step, round(one.value, 4)) for one in events.Scalars("loss")] == [
        (line["step"], round(line["loss"], 4)) for line in LINES
    ]
    (gallery,) = events.Images("gallery")
    assert (gallery.width, gallery.height) == (40, 20)
    assert {"settings/text_summary", "report/text_summary"} <= set(events.Tags()["tensors"])
    assert len(events.Tensors("settings/text_summary")) == 1


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow(run, tmp_path, monkeypatch):
    told_in_two_parts("mlflow", run)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        steps = database.execute("select step from metrics where key = 'loss' order by timestamp").fetchall()
        assert steps == [(2,), (4,), (6,), (8,)]
        assert database.execute("select status, name from runs").fetchall() == [("FINISHED", "run")]
        params = dict(database.execute("select key, value from params").fetchall())
    assert json.loads(params["encoder.width"]) == 32
    files = {path.name for path in tmp_path.rglob("*") if "artifacts" in path.parts and path.is_file()}
    assert files == {"gallery.png", "report.html"}


def mlflow_metrics(folder: Path) -> dict[str, list[float]]:
    """The values of every curve, in order of the steps."""
    metrics: dict[str, list[float]] = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        for key, value in database.execute("select key, value from metrics order by step"):
            metrics.setdefault(key, []).append(value)
    return metrics


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_all_settings_after_a_failure_while_the_run_is_begun(run, tmp_path, monkeypatch):
    """The run goes on with other epochs, of which MLflow keeps the first."""
    client: Any = importlib.import_module("mlflow").MlflowClient
    real, requests = client.log_batch, []

    def fails_once(self, *place, **content):
        requests.append(content)
        if len(requests) == 2:
            raise ConnectionError("no network")
        real(self, *place, **content)

    monkeypatch.setattr(client, "log_batch", fails_once)
    sender = Sender(TRACKERS.find("mlflow"), run, tiny())
    with pytest.raises(UserError, match=r"mlflow cannot begin \(no network\)"):
        sender.begin()
    sender.begin()
    sender.close()
    del sender.account.memory["settings"]  # as written before it was noted
    sender.account.write()
    again = Sender(TRACKERS.find("mlflow"), run, replace(tiny(), optim=replace(tiny().optim, epochs=9)))
    again.begin()
    again.close()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        params = dict(database.execute("select key, value from params").fetchall())
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    assert params == {name: json.dumps(value) for name, value in sender.tracker.plain_settings().items()}


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_a_run_as_killed_until_it_goes_on(run, tmp_path):
    def status():
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            return database.execute("select status from runs").fetchall()

    for complete, end in ((False, "KILLED"), (True, "FINISHED")):
        sender = Sender(TRACKERS.find("mlflow"), run, tiny())
        sender.begin()
        assert status() == [("RUNNING",)]
        sender.tracker.complete = complete
        sender.close()
        assert status() == [(end,)]


NAMES = {
    "acc@1": "acc_1_3",
    "acc_1": "acc_1",
    "acc+1": "acc_1_2",
    "imagine-brightness-+0.3-00600/rank": "imagine-brightness-_0.3-00600/rank",
    "précision 1:2": "pr_cision 1:2",
    "/a//b/./c.d/.5/": "_/a/_/b/_/c.d/.5/_",
    "../up": "_/up",
    "..up": "_up",
    "": "_",
    "line\n": "line_",
    "x" * 300: "x" * 250,
    "x" * 301: "x" * 240 + "_2",
    "y" * 249 + "/y": "y" * 249,
}


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_names_that_mlflow_does_not_take_are_sent_under_others_which_stay_apart(run, tmp_path):
    values: dict[str, float] = {name: float(number) for number, name in enumerate(NAMES)}
    later: dict[str, float] = {name: value + 100 for name, value in reversed(values.items())}
    for step, line in ((2, values), (4, {**later, "acc?1": 1.0})):  # of two processes
        sender = Sender(TRACKERS.find("mlflow"), run, tiny())
        sender.begin()
        sender.start()
        sender.line({"step": step, **line})
        assert sender.end(60) == ""
        assert sender.failures == 0, sender.reason
    curves = mlflow_metrics(tmp_path)
    assert curves == {NAMES[name]: [value, value + 100] for name, value in values.items()} | {"acc_1_4": [1.0]}


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_sent_more_numbers_than_one_request_holds(run, tmp_path):
    sender = Sender(TRACKERS.find("mlflow"), run, tiny())
    sender.begin()
    sender.tracker.scalars(2, {f"class {number}": 1.0 for number in range(1001)})
    sender.close()
    assert len(mlflow_metrics(tmp_path)) == 1001


@needs("trackio")
@pytest.mark.filterwarnings("ignore")
def test_trackio(run, tmp_path):
    told_in_two_parts("trackio", run)
    with sqlite3.connect(tmp_path / "trackio" / "iwm.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    losses = [step for _, step, metrics in rows if "loss" in json.loads(metrics)]
    assert losses == [2, 4, 6, 8]
    assert {"gallery", "report"} <= {key for _, _, metrics in rows for key in json.loads(metrics)}


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline file: LevelDB's log format after a header of 7 bytes."""
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if left < 7 or kind == 0:
            place += left
            continue
        part = (part if kind in (3, 4) else b"") + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield part


def whole_wandb_file(path: Path, messages: Any) -> list[Any]:
    """The records of an offline file, the last of which tells that the run ended: W&B's own process may write on for a
    moment after the run has finished."""
    for _ in range(600):
        records = [messages.Record.FromString(content) for content in wandb_records(path)]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end.")


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb(run):
    told_in_two_parts("wandb", run)
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    lines, ids, codes = [], set(), []
    for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for record in whole_wandb_file(path, messages):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                lines.append((record.history.step.num, items))
            elif record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            elif record.WhichOneof("record_type") == "exit":
                codes.append(record.exit.exit_code)
    calls = [call for call, _ in lines]
    assert calls == sorted(set(calls)), "W&B drops what does not come with a larger number"
    assert [int(items["step"]) for _, items in lines if "loss" in items] == [2, 4, 6, 8]
    assert ids == {Sender(TRACKERS.find("wandb"), run, tiny()).account.memory["id"]}
    assert {"gallery", "report"} <= {key for _, items in lines for key in items}
    assert codes == [1, 0], "the first process was stopped"


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_its_server_is_one_sentence(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"mlflow cannot begin \(.*\); check MLFLOW_TRACKING_URI and the server, or"):
        Sender(TRACKERS.find("mlflow"), run, tiny()).begin()


def test_names_may_have_spaces_and_come_twice():
    class Own(Tracker):
        name = "own"

    try:
        register_tracker(Own)
        assert trackers_of("own, own,") == [Own]
    finally:
        TRACKERS.pop("own")
    assert trackers_of("") == []
