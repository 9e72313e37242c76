"""One predictor for several tasks: it learns them all, hears which is meant, beats nothing by unequal treatment, and
every task can be predicted from what was saved."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures_file
from exporting.models import world

from evaluation.planted import corners, exported, few_tasks, quadrants
from iwm import cli, config, run_folder, verbs
from iwm.evaluation.tasks import augment, finetune, multitask, shared_predictor
from iwm.evaluation.tasks.classifier import AttentiveHead, load_classifier, predict, task_names
from iwm.reports import verdict
from iwm.reports.page import write
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.finetune import Finetune
from iwm.verbs.multitask import Multitask
from iwm.verbs.shared import Classification, Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK = Classification(lrs=(3e-3,), ratios=(1.0,), views=1, schedule=Schedule(epochs=1, search_epochs=1, batch_size=48))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return few_tasks(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("learnable")
    train, val = corners(folder, train=480)
    return {"equal": train, "equal-val": val, "where": quadrants(folder, count=240)}


@pytest.fixture
def run(tmp_path: Path) -> str:
    return exported(tmp_path)


def tune(run, sources, settings=QUICK, **options):
    fields = {
        "task": (f"equal={sources['equal']}", f"where={sources['where']}"),
        "val": (f"equal={sources['equal-val']}",),
        "speed": SPEED,
        **verbs.part(settings, Classification),
        **options,
    }
    return multitask.multitask(Multitask(run=run, **fields))


def pictures_of(path: str, prefix: str = "") -> tuple[torch.Tensor, np.ndarray]:
    arrays = np.load(path)
    return torch.from_numpy(arrays[f"{prefix}images"]).permute(0, 3, 1, 2), arrays[f"{prefix}labels"]


def test_one_predictor_learns_tasks_of_different_classes_and_predicts_each(run, learnable):
    before = (Path(run) / "model" / "model.safetensors").read_bytes()
    settings = Classification(
        lrs=(3e-3, 5e-3), ratios=(1.0,), views=1, schedule=Schedule(epochs=10, search_epochs=1, batch_size=48)
    )
    found = tune(run, learnable, settings, predictor="random")
    assert found["tasks"]["where"]["top1"] > 0.95
    assert found["tasks"]["equal"]["top1"] > 0.85
    assert [row["lr"] for row in found["tried"]] == [3e-3, 5e-3]
    assert (Path(run) / "model" / "model.safetensors").read_bytes() == before
    assert task_names(found["weights"]) == ("equal", "where")
    for task, (images, labels) in {
        "equal": pictures_of(learnable["equal-val"]),
        "where": pictures_of(learnable["where"], "val_"),
    }.items():
        tuned = load_classifier(found["weights"], task=task)
        guesses = predict(tuned, images, CPU)
        assert guesses.shape == (len(labels), len(tuned.names))
        top1 = float((guesses.argmax(1).numpy() == labels).mean())
        # The head learned from tokens rounded to float16: a borderline image may tip over.
        assert top1 == pytest.approx(found["tasks"][task]["top1"], abs=0.02)
    # The predictor hears the token: with the other task's, the head is told something else.
    images, _ = pictures_of(learnable["where"], "val_")
    own, swapped = (load_classifier(found["weights"], task="where") for _ in range(2))
    swapped.token = load_classifier(found["weights"], task="equal").token
    assert not torch.allclose(own(images), swapped(images), atol=1e-3)


def test_a_result_says_all_that_it_promises(run, sources):
    found = tune(run, sources)
    path = Path(found["path"])
    assert path == Path(run) / "eval" / "multitask-pretrained-equal+where.json"
    content = json.loads(path.read_text())
    for name, classes in (("equal", 2), ("where", 4)):
        task = content["tasks"][name]
        assert {"top1", "top5", "single_task_top1", "single_task_top5", "chance"} <= set(task)
        assert {"top1_standard_error", "single_task_top1_standard_error"} <= set(task)
        assert {"single_task_equal_updates_top1", "single_task_equal_updates_chosen"} <= set(task)
        assert task["chance"] == 1 / classes == 1 / len(task["classes"])
        assert 0 < task["majority_top1"] < 1
    for key in ("top1", "single_task_top1", "single_task_equal_updates_top1"):
        mean = np.mean([content["tasks"][name][key] for name in ("equal", "where")])
        assert content[f"average_{key}"] == pytest.approx(mean)
    model = run_folder.load_model(run)
    predictor = sum(p.numel() for p in model.predictor.parameters())
    heads = sum(p.numel() for count in (2, 4) for p in AttentiveHead(32, count).parameters())
    assert content["trainable_parameters"] == predictor + heads + 2 * model.settings.predictor.width
    assert content["single_task_trainable_parameters"] == 2 * predictor + heads
    assert content["single_task_iterations"] == content["iterations"]
    assert content["single_task_equal_updates_iterations"] == 2 * content["iterations"]
    assert path.with_suffix(".png").is_file()
    for task in ("equal", "where"):
        held = load_classifier(found["weights"], task=task).encoder.state_dict()
        assert all(torch.equal(held[name], value) for name, value in model.target_encoder.state_dict().items())
    page = write(Path(run)).read_text()
    assert "Many tasks, one predictor" in page
    assert "One predictor, 2 tasks" in page


def test_repeats_are_equal_bit_for_bit_and_a_seed_has_a_name_of_its_own(run, sources):
    first = tune(run, sources)
    weights = (Path(first["weights"]) / "model.safetensors").read_bytes()
    again = tune(run, sources)
    assert first["path"] == again["path"]
    assert (Path(again["weights"]) / "model.safetensors").read_bytes() == weights
    other = tune(run, sources, seed=1)
    assert Path(other["path"]).name == "multitask-pretrained-seed1-equal+where.json"


def test_tokens_not_kept_give_the_same_training(run, sources, monkeypatch):
    first = tune(run, sources)
    monkeypatch.setattr(finetune, "frozen_tokens", lambda *given, **named: None)
    second = tune(run, sources)
    assert first["tokens_kept"]
    assert not second["tokens_kept"]
    assert second["average_top1"] == pytest.approx(first["average_top1"], abs=0.15)


def refused(capsys, *argv: str) -> str:
    assert cli.main(["multitask", *argv]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_bad_tasks_are_one_sentence(run, sources, tmp_path, capsys):
    one, two = f"a={sources['equal']}", f"b={sources['where']}"
    assert "--task a is given twice" in refused(capsys, run, "--task", one, "--task", one)
    assert "One task is given; give 2 to 8" in refused(capsys, run, "--task", one)
    assert "No task is given" in refused(capsys, run)
    nine = [word for number in range(9) for word in ("--task", f"t{number}={sources['equal']}")]
    assert "9 tasks are given; give 2 to 8" in refused(capsys, run, *nine)
    for text in ("birds", "=birds", "birds=", "my birds=x"):
        assert f"--task {text} is not NAME=S" in refused(capsys, run, "--task", text, "--task", two)
    bare = str(pictures_file(tmp_path / "bare.npz"))
    assert "Task c: 'bare' has no labels" in refused(capsys, run, "--task", one, "--task", f"c={bare}")
    same = tmp_path / "same.npz"
    np.savez(same, images=np.zeros((20, 16, 16, 3), np.uint8), labels=np.zeros(20, np.int64))
    assert "one class only" in refused(capsys, run, "--task", one, "--task", f"c={same}")
    assert "did you mean 'a'" in refused(capsys, run, "--task", one, "--task", two, "--val", "aa=x")
    assert "encoder without a predictor" in refused(capsys, "timm:vit_tiny_patch16_224", "--task", one, "--task", two)
    assert "cannot be split" in refused(capsys, run, "--task", one, "--task", two, "--batch-size=1")
    for change in ({"queries": "one"}, {"action": "random"}, {"schedule": replace(QUICK.schedule, mixup=0.8)}):
        with pytest.raises(UserError, match="asked at all positions"):
            tune(run, sources, replace(QUICK, **change))
    assert not (Path(run) / "eval").exists()


def test_what_cannot_be_built_is_refused_before_an_image_is_read(run, sources, tmp_path, monkeypatch):
    def reading(*words: object, **more: object) -> None:
        pytest.fail("images were read")

    monkeypatch.setattr(multitask, "_splits", reading)
    monkeypatch.setattr(multitask, "_prepare", reading)
    with pytest.raises(UserError, match=r"--depth 7 asks for more than the predictor's 2 blocks"):
        tune(run, sources, replace(QUICK, depth=7))
    joint = world(tmp_path / "joint", objective=config.Objective(kind="joint"))
    with pytest.raises(UserError, match="predictor"):
        tune(str(joint), sources)


def test_a_task_must_be_named_and_exist(run, sources, tmp_path):
    weights = tune(run, sources)["weights"]
    with pytest.raises(UserError, match="several tasks; name one of them: equal, where"):
        load_classifier(weights)
    with pytest.raises(UserError, match="did you mean 'where'"):
        load_classifier(weights, task="were")
    single = finetune.finetune(
        Finetune(run=run, data=sources["where"], speed=SPEED, baselines=False, **verbs.part(QUICK, Classification))
    )["weights"]
    assert task_names(single) == ()
    with pytest.raises(UserError, match="classifier of one task"):
        load_classifier(single, task="where")
    with pytest.raises(UserError, match="no finetuned classifier"):
        task_names(tmp_path / "nothing")


def test_a_twin_that_fails_leaves_what_was_measured_and_its_weights(run, sources, monkeypatch):
    fit = shared_predictor.Training.run

    def failing(self):
        if len(self.tasks) == 1:
            raise UserError("The training of the twin diverged.")
        return fit(self)

    monkeypatch.setattr(shared_predictor.Training, "run", failing)
    with pytest.raises(UserError, match="twin diverged"):
        tune(run, sources)
    (path,) = (Path(run) / "eval").glob("multitask-*.json")
    content = json.loads(path.read_text())
    assert content["average_top1"] == sum(task["top1"] for task in content["tasks"].values()) / 2
    assert task_names(content["weights"]) == ("equal", "where")
    finding = verdict.judge_multitask(content)
    assert finding.good is None
    assert "cannot be judged" in finding.sentence
    assert "cannot be judged" in write(Path(run)).read_text()


def test_the_verdict_compares_with_the_better_twin():
    task = {"top1": 0.8, "single_task_top1": 0.7, "single_task_equal_updates_top1": 0.9, "n_val": 1000}
    averages = {f"average_{key}": value for key, value in task.items()}
    finding = verdict.judge_multitask({"tasks": {"a": task, "b": task}, **averages})
    assert not finding.good
    assert "(equal updates, 90.0%)" in finding.sentence


def test_all_are_searched_on_one_grid(run, sources):
    found = tune(run, sources, replace(QUICK, lrs=(1e-3, 3e-3)))
    for task in found["tasks"].values():
        for twin in ("single_task", "single_task_equal_updates"):
            assert [row["lr"] for row in task[f"{twin}_tried"]] == [row["lr"] for row in found["tried"]] == [1e-3, 3e-3]
            assert set(task[f"{twin}_at_grid_end"]) == {"lr"}


@pytest.mark.parametrize(
    ("ours", "good", "word"), [(0.9, True, "above"), (0.8, None, "level with"), (0.6, False, "BELOW")]
)
def test_the_verdict_compares_with_the_twins(ours, good, word):
    task = {"top1": ours, "single_task_top1": 0.8, "n_val": 1000}
    finding = verdict.judge_multitask(
        {"tasks": {"a": task, "b": task}, "average_top1": ours, "average_single_task_top1": 0.8}
    )
    assert finding.good is good
    assert word in finding.sentence


def test_fresh_pictures_are_drawn_every_epoch_and_dropped_paths_repeat(run, sources, monkeypatch):
    drawn: list[int] = []
    views = augment.Maker.views

    def counting(self, indices, number):
        drawn.append(number)
        return views(self, indices, number)

    monkeypatch.setattr(augment.Maker, "views", counting)
    settings = replace(QUICK, views=0, drop_path=0.3, schedule=replace(QUICK.schedule, epochs=2))
    first = tune(run, sources, settings)
    assert not first["tokens_kept"]
    assert {1, 2} <= set(drawn)
    weights = (Path(first["weights"]) / "model.safetensors").read_bytes()
    torch.rand(1)
    assert (Path(tune(run, sources, settings)["weights"]) / "model.safetensors").read_bytes() == weights


def test_names_of_many_bytes_still_make_a_file(run, sources):
    names: list[str] = ["\u1e01" * 45, "\u1e03" * 45]
    tasks = (f"{names[0]}={sources['equal']}", f"{names[1]}={sources['where']}")
    found = tune(run, sources, task=tasks, val=(f"{names[0]}={sources['equal-val']}",))
    assert Path(found["path"]).name == "multitask-pretrained-2-tasks.json"


def test_the_table_of_two_tasks_keeps_its_words_whole_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    keys = ("top1", "single_task_top1", "single_task_equal_updates_top1", "chance", "majority_top1", "top5")
    task = {**dict.fromkeys(keys, 0.5), "n_train": 10, "n_val": 5, "classes": ["a", "b"]}
    totals = ("trainable_parameters", "single_task_trainable_parameters", "iterations", "single_task_iterations")
    content = {"predictor": "pretrained", "tasks": {"cars": task, "birds": task}}
    content |= {f"average_{key}": 0.5 for key in keys}
    multitask._show(content | dict.fromkeys((*totals, "single_task_equal_updates_iterations"), 1))
    printed = capsys.readouterr().out
    for word in ("single_task_equal_updates_top1", "n_train", "cars", "birds", "average"):
        assert word in printed
