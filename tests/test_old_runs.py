"""Runs, weights, results and checkpoints of older versions (tests/fixtures): they load, go on and say the same."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from old_runs import FIXTURES, fingerprint, images, marked_anew, tokens, told

import iwm
from iwm.cli import main
from iwm.config import Config
from iwm.evaluation.tasks.classifier import load_classifier
from iwm.evaluation.tasks.segmenter import load_segmenter
from iwm.runtime import fields

pytestmark = pytest.mark.filterwarnings("ignore:Training never drew")  # one action is asked of all of them
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
RUNS = sorted(path.name for path in (FIXTURES / "runs").iterdir())
RESUMED = sorted(path.parent.name for path in FIXTURES.glob("runs/*/checkpoints"))
RESULTS = sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("runs/*/eval/*.json"))
MAIN = Path("runs/adaln-muon")
CLASSIFIER = MAIN / "eval" / "finetune-predictor-pretrained-pictures"
TASKS = MAIN / "eval" / "multitask-pretrained-light+kind"
SEGMENTER = MAIN / "eval" / "segment-head-linear-masked"
STEPS = 24
"""Of every run under runs/: 6 epochs of 4."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures that may be written to, as the current folder: their paths are relative to it."""
    shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def require_same(found: Any, expected: Any, within: float = 1e-4) -> None:
    """Equal as far as another processor counts alike: every number within this share of the numbers' mean size."""
    if "mean_size" not in expected:
        assert set(found) == set(expected)
        for name, value in expected.items():
            require_same(found[name], value, within)
        return
    size = expected["mean_size"]
    assert found["shape"] == expected["shape"]
    assert found["mean_size"] == pytest.approx(size, rel=within)
    assert found["values"] == pytest.approx(expected["values"], rel=within, abs=within * size)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_there_is_a_run_of_every_kind() -> None:
    made = [iwm.load(str(FIXTURES / "runs" / run)).settings for run in RUNS]
    assert set(RUNS) == set(EXPECTED["runs"])
    latent = [settings for settings in made if settings.objective.kind == "latent"]
    assert {s.objective.kind for s in made} == {"latent", "pixels", "joint"}
    assert {s.predictor.conditioning for s in latent} == {"none", "sequence", "feature", "adaln"}
    assert {s.objective.invariance for s in made if s.objective.kind == "joint"} == {"contrastive", "regression"}
    assert {s.optim.kind for s in made} == {"adamw", "muon"}
    assert {s.actions.set for s in made} == {"photometric", "camera"}


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_says_what_it_said(run: str) -> None:
    require_same(tokens(iwm.load(str(FIXTURES / "runs" / run))), EXPECTED["runs"][run])
    require_same(tokens(iwm.load(str(FIXTURES / "runs" / run / "model"))), EXPECTED["runs"][run])


@torch.no_grad()
def test_old_classifiers_and_segmenters_say_what_they_said() -> None:
    require_same(told(load_classifier(FIXTURES / CLASSIFIER)(images())), EXPECTED["classifier"])
    for task, expected in EXPECTED["tasks"].items():
        require_same(told(load_classifier(FIXTURES / TASKS, task=task)(images())), expected)
    segmenter = load_segmenter(FIXTURES / SEGMENTER)
    require_same(told(segmenter(images())), EXPECTED["segmenter"])
    assert segmenter.names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("folder", "words", "source", "answers"),
    [(CLASSIFIER, (), "pictures.npz", {"dim", "light"}), (TASKS, ("--task", "kind"), "kinds.npz", {"0", "1", "2"})],
)
def test_old_classifiers_are_asked_from_the_command_line(here: Path, folder, words, source, answers) -> None:
    where = ["--out", "said.csv", "--speed.precision", "fp32", "--speed.device", "cpu"]
    assert main(["predict", str(folder), source, *words, *where]) == 0
    with Path("said.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["prediction"] for line in lines} <= answers
    assert len(lines) == {"pictures.npz": 80, "kinds.npz": 42}[source]


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_checkpoints_of_both_optimisers_are_kept() -> None:
    assert {iwm.load(str(FIXTURES / "runs" / run)).settings.optim.kind for run in RESUMED} == {"adamw", "muon"}
    assert len(RESUMED) == 4


@pytest.mark.parametrize("run", RESUMED)
def test_an_old_checkpoint_goes_on(here: Path, run: str, capsys) -> None:
    folder = here / "runs" / run
    before = (folder / "metrics.jsonl").read_text()
    assert main(["pretrain", "--config", f"runs/{run}/config.yaml", "--optim.epochs", "7"]) == 0
    assert f"Going on from step {STEPS} of {STEPS + 4}." in said(capsys)
    after = (folder / "metrics.jsonl").read_text()
    assert after.startswith(before)
    old, new = (json.loads(text.splitlines()[-1]) for text in (before, after))
    assert (old["step"], new["step"]) == (STEPS, STEPS + 4)
    assert set(new) >= set(old), "newer lines may say more, never less"
    assert new["skipped"] == 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{STEPS + 4:08d}"]
    # It went on with the weights and the momentum that were there; steps add up what processors differ in.
    expected = EXPECTED["resumed"][run]
    assert new["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    require_same(tokens(iwm.load(f"runs/{run}"))["encode_student"], expected["encode_student"], within=1e-3)


@pytest.mark.parametrize("run", RESUMED)
def test_a_finished_old_run_is_only_exported_anew(here: Path, run: str) -> None:
    shutil.rmtree(here / "runs" / run / "model")
    assert main(["pretrain", "--config", f"runs/{run}/config.yaml"]) == 0
    require_same(tokens(iwm.load(f"runs/{run}")), EXPECTED["runs"][run])
    before, after = (read(root / "runs" / run / "model" / "config.json") for root in (FIXTURES, here))
    before["settings"]["data"]["source"] = str(here / "pictures.npz")
    del after["sha256"], after["images"]  # noted since
    later = fields.flatten(after.pop("settings"))
    assert later | fields.flatten(Config.upgraded(before.pop("settings"))) == later, (
        "settings may join, none may change"
    )
    assert after == before


def test_old_runs_are_judged(here: Path, capsys) -> None:
    for run in RUNS:
        assert main(["doctor", f"runs/{run}"]) in (0, 1)
        assert re.search(rf"\b(healthy|ill)\b.* at step {STEPS}", said(capsys))


def test_old_runs_are_reported(here: Path) -> None:
    for run in RUNS:
        assert main(["report", f"runs/{run}"]) == 0
    page = (here / MAIN / "report.html").read_text()
    for name, metric in (("world-4x8-seed0-pictures", "mrr"), ("probe-linear-pictures", "top1")):
        assert f"{read(here / MAIN / 'eval' / f'{name}.json')[metric]:.3f}" in page


def test_old_runs_are_compared(here: Path, capsys) -> None:
    others = ["runs/feature-adamw", "runs/contrastive"]
    assert main(["compare", str(MAIN), *others]) == 0
    table = said(capsys)
    for run in (str(MAIN), others[0]):
        assert f"{read(here / run / 'eval' / 'world-4x8-seed0-pictures.json')['mrr']:.4f}" in table
    assert f"{read(here / others[1] / 'eval' / 'probe-linear-pictures.json')['top1']:.4f}" in table
    assert "predictor.conditioning (adaln | feature | adaln)" in table


# ---- results ---------------------------------------------------------------------------------------------------------


def test_there_is_a_result_of_every_verb() -> None:
    verbs = {shlex.split(read(FIXTURES / path)["command"])[1] for path in RESULTS}
    assert verbs == {
        *("world", "probe", "finetune", "efficiency", "multitask", "segment"),
        "imagine",
        "infer",
        "look",
        "undo",
    }


def test_fingerprints_are_those_of_the_settings() -> None:
    for path in [*RESULTS, "sweep/sweep.json"]:
        result = read(FIXTURES / path)
        assert result["fingerprint"] == fingerprint(result["settings"]), path


@pytest.mark.parametrize("path", RESULTS)
def test_a_repeat_finds_the_old_result(here: Path, path: str, capsys) -> None:
    """The command that the old result names, typed again, takes the place of that result and of no other."""

    def absolute(text: str) -> str:
        """Sources and images as this folder's own run would have written them."""
        return str(here / text) if text.endswith((".npz", ".png")) and (here / text).is_file() else text

    marked_anew(here / path, absolute)
    before, files = read(here / path), set(here.rglob("*.json"))
    assert main(shlex.split(before["command"])[1:]) == 0
    if before.get("kind") == "attentive":  # its grid has grown since: another result, beside the old one
        new = set(here.rglob("*.json")) - files
        assert [read(path)["settings"]["lrs"][-1] for path in new] == [3e-2]
        assert read(here / path) == before
        return
    after = read(here / path)
    assert set(here.rglob("*.json")) == files
    assert after["date"] != before["date"]
    assert (after["settings"], after["fingerprint"]) == (before["settings"], before["fingerprint"])
    assert set(after) >= set(before), "newer results may say more, never less"
    if before.get("points"):
        assert after["points"] == before["points"]
        assert "4 of 4 points are there already" in said(capsys)


def test_an_old_sweep_is_finished(here: Path, capsys) -> None:
    before = read(here / "sweep" / "sweep.json")
    files = {path: path.stat().st_mtime_ns for path in here.glob("sweep/*/*") if path.is_file()}
    assert main(shlex.split(before["command"])[1:]) == 0
    after = read(here / "sweep" / "sweep.json")
    assert after["fingerprint"] == before["fingerprint"]
    assert [run["state"] for run in after["runs"]] == ["finished", "finished"]
    for row, old in zip(after["runs"], before["runs"], strict=True):
        assert row["health"][:60] == old["health"][:60], "the verdict is the same, in other words perhaps"
        assert row.items() >= (old | {"health": row["health"]}).items(), "newer tables may say more, never less"
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (here / "sweep" / "sweep.html").is_file()
