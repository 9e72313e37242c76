"""The verdict on a run: its training, and one finding for every question that its results answer."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from planted_runs import PROBE, SEGMENT, WORLD, hold, metrics, plant, save, tune

from iwm.reports import results as readers
from iwm.reports.finding import Finding
from iwm.reports.verdict import headline, judge_result, judge_results, judge_training
from iwm.run_folder import RunFolder


@pytest.mark.parametrize(
    ("change", "good", "says"),
    [
        ({}, True, "healthy at step 100"),
        ({"target_variance": 0.001}, False, "hardly depend on the image"),
        ({"loss": math.nan}, False, "diverged"),
        ({"action_sensitivity": None}, False, "diverged"),
        ({"rankme": "high"}, None, "no health numbers"),
    ],
)
def test_the_verdict_on_training(change: dict[str, Any], good: bool | None, says: str) -> None:
    found = judge_training([json.loads(metrics()), json.loads(metrics(**change))])
    assert found.good is good
    assert says in found.sentence
    assert judge_training([]).good is None


def test_the_verdict_on_training_says_what_was_measured_of_an_ill_run() -> None:
    ill = json.loads(metrics(action_sensitivity=0.0, target_rankme=93.4, action_slope=0.1, action_correlation=0.2))
    sentence = judge_training([ill]).sentence
    assert "ignores the action" in sentence
    assert "RankMe 93" in sentence
    assert "slope 0.10" in sentence


def test_every_way_of_reading_the_encoder_is_judged_and_named() -> None:
    plain = PROBE | {"data": "d", "file": "probe-linear-d", "layer": 4, "depth": 4, "pooling": "mean"}
    others = [
        plain | {"file": "probe-linear-layers4-d", "layers": 4},
        plain | {"file": "probe-linear-layers2-2x2-d", "layers": 2, "pooling": "2x2", "top1": 0.2},
        plain | {"file": "probe-linear-layer3-d", "layer": 3},
        plain | {"file": "probe-linear-student-d", "settings": {"student": True}},
    ]
    titles = {finding.title: finding for finding in judge_results([plain, *others])}
    assert list(titles) == [
        "Linear probe on d",
        "Linear probe (all 4 blocks side by side) on d",
        "Linear probe (the last 2 blocks side by side, pooling 2x2) on d",
        "Linear probe (block 3 of 4) on d",
        "Linear probe (the student) on d",
    ]
    assert titles["Linear probe (the last 2 blocks side by side, pooling 2x2) on d"].good is False
    (alone,) = judge_results(others[:1])
    assert alone.sentence.startswith("The linear probe (all 4 blocks side by side) on d (46.0% right) is above")


def test_finetuning_is_judged_over_the_seeds_both_have(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    for seed, (ours, random) in enumerate([(0.52, 0.50), (0.53, 0.51), (0.525, 0.50)]):
        tune(run, "pretrained", ours, seed)
        tune(run, "random", random, seed)
    tune(run, "pretrained", 0.9, seed=7)
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is True
    assert "(52.5%) is above a random one (50.3%): +2.2 points, over 3 seeds, 95 % interval " in found.sentence
    assert "+1.4 to +2.9 (Student's t of n = 3, standard error 0.2)." in found.sentence


def test_only_results_of_the_same_weights_are_paired(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    tune(run, "random", 0.50, run_weights="ab")
    tune(run, "pretrained", 0.58, run_weights="ab")
    hold(run, "ab")
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is True
    assert "is above a random one (50.0%)" in found.sentence
    hold(run, "cd")  # trained further, and one of the two measured anew
    tune(run, "pretrained", 0.70, run_weights="cd")
    (now,) = judge_results(RunFolder(Path(run)).results())
    assert now.good is None
    assert "no random predictor of the same seed and settings" in now.sentence
    hold(run, "ef")
    (gone,) = judge_results(RunFolder(Path(run)).results())
    assert gone.title == "Finetuning the predictor on objects (of earlier weights)"
    assert gone.good is None
    said = headline(None, [gone])
    assert said == "The model was trained elsewhere; no evaluation of its present weights has been compared with " + (
        "its controls yet."
    )


def test_results_that_do_not_name_their_weights_are_paired_as_before(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    tune(run, "random", 0.50)
    tune(run, "pretrained", 0.58, run_weights="ab")
    hold(run, "ab")
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is True
    assert "is above a random one (50.0%)" in found.sentence


def test_only_results_of_the_same_precision_are_paired(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    tune(run, "random", 0.50, precision="fp32")
    tune(run, "pretrained", 0.58, precision="bf16")
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is None
    assert "no random predictor of the same seed and settings" in found.sentence
    tune(run, "random", 0.50, precision="bf16")
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is True


def test_three_seeds_apart_by_three_errors_are_level(tmp_path: Path) -> None:
    """With three seeds chance reaches 4.3 standard errors in one of twenty cases."""
    run = plant(tmp_path / "run")
    for seed, difference in enumerate((0.01, 0.02, 0.03)):  # mean .02, standard error .0058
        tune(run, "pretrained", 0.5 + difference, seed)
        tune(run, "random", 0.5, seed)
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is False
    assert "is level with a random one (50.0%): +2.0 points, over 3 seeds, 95 % interval -0.5 to +4.5" in found.sentence


def test_the_headline_counts() -> None:
    good, bad, open_ = (Finding("", good, "") for good in (True, False, None))
    assert headline(open_, []).startswith("Nothing is known of the training; no evaluation")
    assert headline(good, [good, open_]) == "The training is healthy, and every evaluation beats its controls."
    assert headline(good, [good, bad]) == "The training is healthy, but of 2 evaluations only 1 beats its controls."
    assert headline(None, [good]) == "The model was trained elsewhere, and every evaluation beats its controls."
    assert headline(bad, [bad]) == "The training is ill, and no evaluation beats its controls."


def test_a_result_measured_with_its_baselines_is_judged_before_one_without() -> None:
    bare = SEGMENT | {"train": "predictor", "file": "segment-predictor-pretrained-linear-rooms"}
    whole = bare | {"file": "segment-predictor-pretrained-linear-0123ab-rooms", "random_encoder_miou": 0.3}
    (found,) = judge_results([bare, whole])
    assert found.good is True
    probe = {"data": "rooms", "file": "probe-linear-rooms", "kind": "linear", "top1": 0.46}
    (found,) = judge_results([probe, PROBE | {"data": "rooms", "file": "probe-linear-0123ab-rooms"}])
    assert found.good is True


def test_a_finetuning_without_baselines_finds_its_control_and_counts_once(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    payload = {"data": "objects", "train": "predictor", "top1": 0.52, "n_val": 2000}
    settings = {"seed": 0, "epochs": 20}
    for predictor, baselines in (("pretrained", False), ("pretrained", True), ("random", True)):
        top1 = 0.52 if predictor == "pretrained" else 0.4
        chosen = settings | {"predictor": predictor, "baselines": baselines}
        save(run, "finetune", "objects", payload | {"predictor": predictor, "top1": top1}, chosen)
    (found,) = judge_results(RunFolder(Path(run)).results())
    assert found.good is True
    assert "+12.0 points, one seed" in found.sentence


def test_one_result_is_judged_by_itself_and_a_finetuning_with_its_seeds(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    small = save(run, "world", "objects", {"data": "objects", **WORLD, "mrr": 0.026}, {"seed": 1}, "8x256-seed1")
    save(run, "world", "objects", {"data": "objects", **WORLD}, {"seed": 0})
    for seed in (0, 1):
        tune(run, "pretrained", 0.52 + seed / 100, seed)
        tune(run, "random", 0.50 + seed / 100, seed)
    results = RunFolder(Path(run)).results()
    (finding,) = judge_result(small.stem, results)
    assert readers.Result(path=small, content={}).verdict() == finding.sentence
    assert finding.good is False, "the better result of the same data is not asked"
    for name in ("finetune-predictor-pretrained-seed1-objects", "finetune-predictor-random-objects"):
        (finding,) = judge_result(name, results)
        assert "+2.0 points, over 2 seeds" in finding.sentence
    assert judge_result("look-objects", [{"file": "look-objects"}]) == judge_result("export", results) == []


@pytest.mark.parametrize(("alone", "good"), [(0.7, True), (0.8, None), (0.9, False)])
def test_one_predictor_for_all_counts_as_ahead_only_where_it_is_and_a_random_one_not_at_all(alone, good) -> None:
    task = {"top1": 0.8, "single_task_top1": alone, "n_val": 1000}
    numbers = {"average_top1": 0.8, "average_single_task_top1": alone, "tasks": {"a": task, "b": task}}
    results = [
        {"file": f"multitask-{predictor}-a+b", "data": "a+b", "predictor": predictor, **numbers}
        for predictor in ("pretrained", "random")
    ]
    (found,) = judge_results(results)
    assert found.good is good
