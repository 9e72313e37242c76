"""Several runs side by side: the best is marked, and what differs is named."""

import re
from pathlib import Path
from typing import Any

import pytest
from planted_runs import PROBE, WORLD, hold, plant, save

from iwm import config
from iwm.reports import compare as comparison
from iwm.reports.run import Run
from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.verbs.compare import Compare


def compare(runs: list[str]) -> list[dict[str, Any]]:
    return comparison.compare(Compare(runs=tuple(runs)))


def test_compare_marks_the_best_and_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = (plant(tmp_path / name) for name in ("one", "two", "three"))
    settings = config.Config(optim=config.Optim(lr=3e-3), run=config.Run(out=two))
    config.save(settings, RunFolder(Path(two)).config)
    save(one, "world", "objects", {**WORLD, "data": "objects", "inferred_action_error": 0.1}, {"bank": 256})
    save(two, "world", "objects", {**WORLD, "data": "objects", "mrr": 0.5, "inferred_action_error": 0.2}, {"bank": 64})
    save(two, "probe", "objects", {**PROBE, "data": "objects"}, {}, variant="linear")
    rows = {(row["result"], row["metric"]): row for row in compare([one, two, three])}
    assert rows["world", "mrr"]["values"] == {one: 0.42, two: 0.5, three: None}
    assert rows["world", "mrr"]["best"] == [two]
    assert rows["world", "inferred_action_error"]["best"] == [one]
    assert rows["world", "mrr_chance"]["best"] == []
    assert rows["probe-linear", "top1"]["best"] == []  # alone
    printed = capsys.readouterr()
    said = re.sub(r"\s+", " ", printed.out)
    assert "0.5000 *" in said
    assert "optim.lr (0.0010 | 0.0030 | 0.0010)" in said
    assert "run.out" not in said
    assert "has no results yet" in printed.err


def test_names_of_metrics_stay_whole_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison.console, "width", 80)
    runs = [plant(tmp_path / f"quite-a-long-name-{index}") for index in range(3)]
    payload = {"top1": 0.5, "trainable_parameters": 1_498_378, "flops_per_image": 414_215_936, "data": "objects"}
    for run in runs:
        save(run, "finetune", "objects", payload, {}, variant="predictor-pretrained")
    compare(runs)
    out = capsys.readouterr().out
    for line in ("finetune-predictor-pretrained", "objects", "  trainable_parameters", "  flops_per_image"):
        assert f"│ {line} " in out
    assert out.count("1.5 M") == out.count("0.414 G") == len(runs)


def test_counts_are_whole_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(tmp_path / "run")
    save(run, "predict", "photos", {"images": 8, "share": 0.5, "data": "photos"}, {})
    compare([run])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1:4:2] for line in lines if "images" in line or "share" in line] == [
        ["images", "8"],
        ["share", "0.5000"],
    ]


def test_compare_shows_instance_probes_side_by_side(tmp_path: Path) -> None:
    one, two = (plant(tmp_path / name) for name in ("one", "two"))
    for run, top1, crop in ((one, 0.4, 0.7), (two, 0.45, 0.6)):
        payload = {"kind": "instance", "top1": top1, "mrr": top1, "crop_top1": crop, "undo_known_top1": crop}
        save(run, "probe", "photos", payload | {"raw_pixels_top1": 0.3, "data": "photos"}, {}, variant="instance")
    rows = {row["metric"]: row for row in compare([one, two])}
    assert {row["result"] for row in rows.values()} == {"probe-instance"}
    assert rows["top1"]["best"] == rows["mrr"]["best"] == [two]
    assert rows["crop_top1"]["best"] == rows["undo_known_top1"]["best"] == [one]
    assert rows["raw_pixels_top1"]["best"] == []


def test_compare_says_when_a_result_was_measured_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = plant(tmp_path / "a" / "run"), plant(tmp_path / "b" / "run")
    for run, bank in ((one, 256), (two, 64)):
        save(run, "world", "objects", {**WORLD, "data": "objects"}, {"bank": bank})
    other = plant(tmp_path / "c" / "run")  # which has no such result
    rows = compare([one, two, other])
    assert all(row["best"] == [] for row in rows)  # equal
    assert "Not quite comparable, world-objects was measured with different: bank (256 | 64)." in re.sub(
        r"\s+", " ", capsys.readouterr().out
    )


def test_what_names_the_run_itself_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [plant(tmp_path / name) for name in ("one", "two")]
    RunFolder(Path(runs[1])).config.unlink()  # as of a model in the package, or on the hub
    for run in runs:
        own = {"weights": f"of {run}", "start": f"{run}/eval/finetune-predictor", "run": run}
        save(run, "world", "objects", {**WORLD, "data": "objects"}, own)
    compare(runs)
    assert "differ" not in capsys.readouterr().out


def test_compare_names_results_of_earlier_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (plant(tmp_path / name) for name in ("one", "two"))
    for run in (one, two):
        save(run, "world", "objects", {**WORLD, "data": "objects", "run_weights": "ab"}, {"seed": 0})
        hold(run, "ab" if run == one else "cd")
    three = plant(tmp_path / "three")
    save(three, "world", "objects", {**WORLD, "data": "objects", "mrr": 0.9 * WORLD["mrr"]}, {"seed": 0})
    row = next(row for row in compare([two, three]) if row["metric"] == "mrr")
    assert (row["earlier"], row["best"]) == ([str(two)], []), "nothing newer stands beside it"
    row = next(row for row in compare([one, two, three]) if row["metric"] == "mrr")
    assert (row["earlier"], row["best"]) == ([str(two)], [str(one)])
    printed = capsys.readouterr()
    said = re.sub(r"\s+", " ", printed.err)
    assert "(earlier)" in printed.out
    assert "two holds other weights now than world-objects measured; measure again to compare them." in said
    assert "one holds other weights" not in said


def test_compare_says_when_a_result_is_of_another_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (plant(tmp_path / name) for name in ("one", "two"))
    for run, precision, settings in ((one, "fp32", {}), (two, "bf16", {"precision": "bf16"})):
        save(run, "probe", "objects", {**PROBE, "data": "objects", "precision": precision}, settings)
    compare([one, two])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Not quite comparable, probe-objects was measured with different: precision (fp32 | bf16)." in said


def test_compare_needs_runs_with_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = plant(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no results"):
        compare([run])
    with pytest.raises(UserError, match="photos is not a run"):
        compare([run, str(tmp_path / "photos")])
    with pytest.raises(UserError, match=r"measured on demo here yet; .* `iwm world demo"):
        compare([run, "demo"])
    with pytest.raises(UserError, match="no run at"):
        compare([run, str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="Which runs"):
        compare([])


def test_a_result_has_its_own_pictures_only(tmp_path: Path) -> None:
    """Of data sets whose names begin alike, and of several changes, which no one action stands for."""
    run = plant(tmp_path / "run")
    payload = {"verb": "imagine", "rank": 1.5, "bank": 8}
    for data in ("cifar10", "cifar100"):
        save(run, "imagine", data, payload | {"data": data}, {})
    for ending in ("cifar10", "cifar10-map", "cifar100"):
        (tmp_path / "run" / "eval" / f"imagine-{ending}.png").write_bytes(b"")
    save(run, "imagine", "photos", payload | {"data": "photos"}, {}, variant="changes")
    found = {result.path.stem: result for result in Run(Path(run)).results}
    assert set(found["imagine-cifar10"].pictures) == {"", "map"}
    assert set(found["imagine-cifar100"].pictures) == {""}
    assert found["imagine-changes-photos"].content["rank"] == 1.5
