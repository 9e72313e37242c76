"""Results are named by verb, variant and data; nothing on disk is ever replaced by another result."""

import errno
import json
import math
import shutil
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny, trained_on
from picture_files import noise
from planted_runs import hold, save

from iwm import config, verbs
from iwm.data.sources import open_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Evaluation, Outcome
from iwm.run_folder import RunFolder
from iwm.runtime import console, drawing, files
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.training import loop
from iwm.verbs.probe import Probe
from iwm.verbs.world import World


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = RunFolder(tmp_path / "run")
    folder.model.mkdir(parents=True)
    folder.config.write_text("{}")
    return str(folder.path)


def test_a_repeat_replaces_only_itself(run: str) -> None:
    first = save(run, "probe", "cifar10", {"top1": 0.5}, {"seed": 0, "k": 20}, variant="knn")
    again = save(run, "probe", "cifar10", {"top1": 0.6}, {"k": 20, "seed": 0}, variant="knn")
    assert first == again == RunFolder(Path(run)).eval / "probe-knn-cifar10.json"
    assert json.loads(first.read_text())["top1"] == 0.6


def test_other_settings_get_another_name(run: str) -> None:
    first = save(run, "probe", "cifar10", {"top1": 0.5}, {"seed": 0}, variant="knn")
    other = save(run, "probe", "cifar10", {"top1": 0.6}, {"seed": 1}, variant="knn")
    assert other != first
    assert other.name.startswith("probe-knn-")
    assert other.name.endswith("-cifar10.json")
    assert json.loads(first.read_text())["top1"] == 0.5
    assert save(run, "probe", "cifar10", {"top1": 0.7}, {"seed": 1}, variant="knn") == other
    results = RunFolder.of(run).results()
    assert {row["file"]: row["top1"] for row in results} == {first.stem: 0.5, other.stem: 0.7}
    assert [row["file"] for row in results] == sorted([first.stem, other.stem])


def test_a_damaged_file_is_neither_read_nor_replaced(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(run, "world", "sample", {"mrr": 0.5}, {"seed": 0})
    path.write_text("{")
    assert save(run, "world", "sample", {"mrr": 0.5}, {"seed": 0}) != path
    assert path.read_text() == "{"
    assert [row["mrr"] for row in RunFolder.of(run).results()] == [0.5]
    assert "no readable result" in capsys.readouterr().err


def test_every_result_says_how_it_was_made(run: str) -> None:
    path = save(run, "world", "sample", {"mrr": np.float32(0.5), "bad": math.nan}, {"seed": 3, "pair": (1, 2)})
    content = json.loads(path.read_text())
    assert content["seed"] == 3
    assert content["settings"] == {"seed": 3, "pair": [1, 2], "run": ""}
    assert content["mrr"] == 0.5
    assert content["bad"] is None
    assert {"command", "hardware", "date", "fingerprint"} <= set(content)
    assert content["hardware"]["torch"]


@pytest.mark.parametrize(
    ("program", "module", "command"),
    [
        ("/a/bin/iwm", None, "iwm world 'my run'"),
        ("/a/iwm/cli/__main__.py", "iwm.cli.__main__", "python -m iwm.cli world 'my run'"),
        ("/a/own/train.py", "own.train", "python -m own.train world 'my run'"),
        ("/a/folder/__main__.py", "__main__", "__main__.py world 'my run'"),
        ("", None, ""),
    ],
)
def test_a_result_holds_the_command_as_it_is_typed_again(
    run: str, monkeypatch: pytest.MonkeyPatch, program: str, module: str | None, command: str
) -> None:
    main = types.ModuleType("__main__")
    main.__spec__ = ModuleSpec(module, None) if module else None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [program, "world", "my run"])
    assert json.loads(save(run, "world", "sample", {"mrr": 0.5}, {"seed": 0}).read_text())["command"] == command


def test_names_are_fit_for_files(run: str) -> None:
    path = save(run, "probe", "my data/a:b", {}, {"seed": 0}, variant="last-2")
    assert path.name == "probe-last-2-my-data-a-b.json"
    birds = [save(run, "probe", "\u9ce5" * 80 + end, {}, {"data": end}) for end in "ab"]
    assert birds[0] != birds[1]
    assert all(len(path.name.encode()) < 200 for path in birds)
    likes = [save(run, "search", "\u9ce5" * 80, {}, {"like": end}, variant="\u9ce5" * 40 + end) for end in "ab"]
    assert likes[0] != likes[1]
    assert all(len(path.name.encode()) < 220 for path in likes)  # a file that is being written has 30 bytes more


def test_an_evaluation_ends_with_json_pictures_weights_and_a_table(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_weights(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.txt").write_text("weights")

    outcome = Outcome(
        data="cifar10",
        payload={"top1": 0.5},
        settings={"seed": 1},
        variant=("linear", "", "seed1"),
        figures={"": lambda: drawing.blank(1, 1), "averaged": lambda: drawing.blank(1, 1)},
        weights=write_weights,
    )
    content = Evaluation("probe", run, "", CPU).conclude(outcome, lambda content: print("top-1", content["top1"]))
    path = RunFolder(Path(run)).eval / "probe-linear-seed1-cifar10.json"
    assert content["path"] == str(path)
    written = json.loads(path.read_text())
    assert written == {key: value for key, value in content.items() if key != "path"}
    assert written["weights"] == str(path.with_suffix(""))
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {".iwm-output", path.name, path.stem, f"{path.stem}.png", f"{path.stem}-averaged.png"}
    printed = capsys.readouterr().out
    pictures = f"{path.stem}.png, {path.stem}-averaged.png"
    assert printed.index("top-1 0.5") < printed.index(f"Written to {path}, {pictures}\n")


def test_results_of_several_runs_in_one_folder_are_told_apart(run: str, tmp_path: Path) -> None:
    outcome = Outcome(data="cifar10", payload={}, settings={"seed": 0})
    paths = []
    for other in (run, "timm:vit_tiny_patch16_224"):
        work = Evaluation("probe", other, str(tmp_path / "out"), CPU)
        paths.append(work.place(outcome))
        ritual.write(paths[-1], {}, work.settings(outcome))
    assert paths[0] != paths[1]
    assert all(path.parent == RunFolder(tmp_path / "out").eval for path in paths)
    assert json.loads(paths[0].read_text())["settings"]["run"] == run
    assert Evaluation("probe", run, "", CPU).settings(outcome)["run"] == ""


def test_an_evaluation_runs_as_its_options_say(run: str) -> None:
    before = torch.get_num_threads()
    options = World(run=run, data="sample", speed=config.Speed(device="cpu", precision="bf16", threads=before + 1))
    with ritual.evaluation("world", options) as work:
        assert torch.get_num_threads() == before + 1
        assert work.session.precision == "bf16"
        assert work.folder.path == Path(run)
    assert torch.get_num_threads() == before


def test_tables_show_fractions_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    console.show("Probe", {"top1": 0.51234, "images": 50000, "twin": None})
    printed = capsys.readouterr().out
    assert "0.5123" in printed
    assert "50,000" in printed
    assert "-" in printed


def test_results_that_cannot_be_written_are_named_before_the_work(run: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, mend in (("", "give --out FOLDER."), (str(tmp_path / "file" / "out"), "give another --out FOLDER.")):
        if not out:
            (Path(run) / "eval").touch()
        options = World(run=run, data="sample", out=out, speed=config.Speed(device="cpu"))
        refusal = pytest.raises(UserError, match=f"Results of {run} cannot be written to .*; {mend}")
        with refusal, ritual.evaluation("world", options):
            pytest.fail("worked")


@pytest.mark.parametrize("fails", ["weights", "figure", "numbers"])
def test_numbers_outlive_what_fails_at_the_end(
    run: str, fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*values: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    outcome = Outcome(
        data="cifar10",
        payload={"top1": 0.5},
        settings={"seed": 1},
        figures={"": full if fails == "figure" else lambda: drawing.blank(1, 1)},
        weights=full if fails == "weights" else None,
    )
    if fails == "numbers":
        monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        Evaluation("probe", run, "", CPU).conclude(outcome, lambda content: print("top-1", content["top1"]))
    assert "top-1 0.5" in capsys.readouterr().out
    results = RunFolder.of(run).results()
    assert [(result["top1"], result.get("weights")) for result in results] == [(0.5, None)] * (fails != "numbers")


def test_two_that_end_at_once_take_two_names(run: str) -> None:
    def write(seed: int) -> None:
        outcome = Outcome(data="cifar10", payload={"top1": seed}, settings={"seed": seed}, weights=slowly)
        Evaluation("probe", run, "", CPU).write(outcome)

    def slowly(folder: Path) -> None:
        time.sleep(0.05)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["top1"] for result in RunFolder.of(run).results()) == [0, 1, 2, 3]
    assert not RunFolder.of(run).results_lock.exists()


def test_a_result_replaces_what_it_holds_whole(tmp_path: Path) -> None:
    work = ritual.Evaluation("probe", str(tmp_path), "", CPU)
    plain = Outcome(data="photos", payload={"top1": 0.3}, settings={"seed": 0, "undo": False})
    more = Outcome(data="photos", payload={"top1": 0.3}, settings={"seed": 0, "undo": True}, contains=[plain.settings])
    other = Outcome(data="photos", payload={"top1": 0.3}, settings={"seed": 1, "undo": False})
    first = work.write(plain)["path"]
    assert work.write(other)["path"] != first
    assert work.write(more)["path"] == first
    assert work.write(more)["path"] == first
    assert work.write(plain)["path"] != first, "what the larger one holds beyond it would be lost"


def test_a_result_names_the_weights_and_what_is_measured_anew_replaces_it(run: str) -> None:
    """Training on changes the weights and no setting: the old numbers go, under the very name."""
    options = World(run=run, data="sample", speed=config.Speed(device="cpu", precision="fp32"))
    outcome = Outcome(data="cifar10", payload={"top1": 0.5}, settings={"seed": 1})
    for mark in ("ab", "cd"):
        hold(run, mark)
        with ritual.evaluation("probe", options) as work:
            hold(run, "while it was measured, training went on")
            content = work.conclude(outcome, lambda _: None)
        assert content["run_weights"] == mark
        (there,) = RunFolder.of(run).results()
        assert (there["run_weights"], there["run"], there["precision"]) == (mark, run, "fp32")
        assert there["settings"] == {"seed": 1, "run": ""}
    assert "run_weights" not in Evaluation("probe", "timm:vit_tiny_patch16_224", "", CPU).facts


def test_a_result_replaces_none_of_another_precision(tmp_path: Path) -> None:
    outcome = Outcome(data="photos", payload={"top1": 0.3}, settings={"seed": 0})
    in_fp32 = Evaluation("probe", str(tmp_path), "", CPU)
    in_bf16 = Evaluation("probe", str(tmp_path), "", replace(CPU, precision="bf16"))
    first, second = in_fp32.write(outcome), in_bf16.write(outcome)
    assert first["settings"] == {"seed": 0, "run": ""}, "as older results in fp32 have it"
    assert second["settings"] == {"seed": 0, "run": "", "precision": "bf16"}
    assert first["path"] != second["path"]
    for work, before in ((in_fp32, first), (in_bf16, second)):
        assert work.write(outcome)["path"] == before["path"]
    said = Outcome(data="photos", payload={}, settings={"seed": 0, "precision": "bf16"}, variant=("said",))
    assert in_bf16.write(said)["settings"] == second["settings"]


def test_an_older_result_is_found_by_the_precision_beside_its_settings(tmp_path: Path) -> None:
    """Those of probes, finetunings, segmentations and many tasks had none among their settings, whatever it was."""
    outcome = Outcome(data="photos", payload={"top1": 0.3}, settings={"seed": 0})
    in_fp32 = Evaluation("probe", str(tmp_path), "", CPU)
    in_bf16 = Evaluation("probe", str(tmp_path), "", replace(CPU, precision="bf16"))
    path = RunFolder(tmp_path).eval / "probe-photos.json"
    path.parent.mkdir()
    settings = {"seed": 0, "run": ""}
    ritual.write(path, {"precision": "bf16"}, settings)
    assert in_bf16.place(outcome) == path
    assert in_fp32.place(outcome) != path
    ritual.write(path, {}, settings)  # older still: its precision is not known
    assert in_fp32.place(outcome) == in_bf16.place(outcome) == path


HELD_OUT = {
    "world": {},
    "infer": {},
    "decoder": {},
    "look": {},
    "undo": {},
    "probe": {"kind": "instance"},
    "finetune": {},
    "efficiency": {},
}
"""Verbs that measure on what is held out."""


@pytest.fixture(scope="module")
def _classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of two classes without val/, both in one place."""
    place = tmp_path_factory.mktemp("classes")
    for name in "ab":
        noise(place / "photos" / name, 30)
    loop.pretrain(trained_on(tiny(), source=str(place / "photos"), out=str(place / "run")))
    return place


@pytest.fixture
def classes(_classes: Path) -> Iterator[Path]:
    """The place of the run; photos and weights are put back at the end."""
    kept = _classes / "kept"
    for name in ("photos", "run"):
        shutil.copytree(_classes / name, kept / name)
    yield _classes
    for name in ("photos", "run"):
        shutil.rmtree(_classes / name)
        (kept / name).rename(_classes / name)
    shutil.rmtree(kept)


HERE = config.Speed(device="cpu", precision="fp32", workers=0)


def open_in_evaluation(place: Path, data: str = "photos", **options: Any) -> None:
    """Open what an evaluation of the run of that place measures on, a source beside it."""
    probe = Probe(run=str(place / "run"), data=str(place / data), speed=HERE, **options)
    with ritual.evaluation("probe", probe):
        open_splits(probe.data, probe.val)


@pytest.mark.parametrize("verb", HELD_OUT)
def test_a_tenth_that_was_trained_on_is_not_measured_on(classes: Path, verb: str) -> None:
    """One more image, and another tenth is held out: most of it was trained on."""
    noise(classes / "photos" / "c", 1)
    sentence = r"photos held 60 images when .*run was trained and holds 61 now, .* mostly trained on; put .* --val"
    with pytest.raises(UserError, match=sentence):
        verbs.call(verb, run=str(classes / "run"), data=str(classes / "photos"), speed=HERE, **HELD_OUT[verb])


def test_what_a_run_began_with_was_trained_on_counts_too(classes: Path) -> None:
    """The first run on 60 images, the second on 61: its own tenth was mostly trained on by the first."""
    photos, second = classes / "photos", classes / "second"
    noise(photos / "c", 1)
    settings = trained_on(tiny(), source=str(photos), out=str(second))
    loop.pretrain(replace(settings, init=str(classes / "run")))
    with pytest.raises(UserError, match=r"held 60 images when .*run was trained and holds 61 now"):
        verbs.call("world", run=str(second), data=str(photos), speed=HERE, images=1, bank=2)
    shutil.rmtree(second)


def test_what_was_not_trained_on_is_measured_on(classes: Path) -> None:
    run, photos, others = (str(classes / name) for name in ("run", "photos", "kept/photos"))
    assert verbs.call("world", run=run, data=photos, speed=HERE, images=1, bank=2)["images"] == 1, "nothing changed"
    noise(classes / "photos" / "c", 1)
    open_in_evaluation(classes, "kept/photos")
    with pytest.raises(UserError, match="mostly trained on"):
        open_in_evaluation(classes, f"kept/photos,{photos}")
    open_in_evaluation(classes, val=others)
    (classes / "photos" / "c" / "000.png").unlink()
    open_in_evaluation(classes)
    noise(classes / "photos" / "val" / "a", 3)
    (classes / "photos" / "train").mkdir()
    for name in "ab":
        (classes / "photos" / name).rename(classes / "photos" / "train" / name)
    open_in_evaluation(classes)


def test_other_names_are_other_images(classes: Path) -> None:
    (classes / "photos" / "a" / "003.png").rename(classes / "photos" / "b" / "zzz.png")
    with pytest.raises(UserError, match=r"holds other images than when .* was trained"):
        open_in_evaluation(classes)
    older, newer = str(classes / "run"), str(classes / "newer")
    loop.pretrain(trained_on(tiny(), source=str(classes / "photos"), out=newer))
    probe = {"data": str(classes / "photos"), "kind": "instance", "speed": HERE}
    with pytest.raises(UserError, match=f"holds other images than when {older} was trained"):
        verbs.call("probe", run=newer, encoder=older, **probe)


def test_older_weights_do_not_say_what_they_were_trained_on(classes: Path) -> None:
    noise(classes / "photos" / "c", 1)
    path = RunFolder(classes / "run").model / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("training_images")[0]["images"] == 60
    path.write_text(json.dumps(content))
    open_in_evaluation(classes)
