"""What a dry run says of a finetuning is what the finetuning does, and it leaves nothing behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pictures_file, tiny

from iwm import verbs
from iwm.evaluation.tasks import fitting
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "views": 1, "lrs": (1e-3, 3e-3), "ratios": (1.0,)}


@pytest.fixture
def model(tmp_path: Path) -> str:
    weights.export(ImageWorldModel(tiny()), tmp_path / "run" / "model")
    return str(tmp_path / "run")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(pictures_file(tmp_path / "labelled.npz", count=40, labelled=True))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every training that really takes place."""
    taken: list[int] = []
    descend = fitting.descend

    def counted(groups: Any, batches: Any, loss_of: Any, steps: int, *more: Any, **how: Any) -> float:
        taken.append(steps)
        return descend(groups, batches, loss_of, steps, *more, **how)

    monkeypatch.setattr(fitting, "descend", counted)
    return taken


def plan_of(name: str, *values: Any, **keywords: Any) -> dict[str, Any]:
    verb = verbs.find(name)
    return dict(verb.estimate(verb.fill(*values, **keywords)))


@pytest.mark.parametrize("train", ["predictor", "head", "encoder", "both"])
def test_steps_of_a_finetuning(model, source, steps, train):
    plan = plan_of("finetune", model, source, train=train, **SHORT)
    assert not (Path(model) / "eval").exists()
    assert plan["images"] == 40
    assert plan["seconds"] > 0
    verbs.call("finetune", model, source, train=train, **SHORT)
    raw_pixels = 0  # no steps: a closed form
    assert plan["steps"] == sum(steps) - raw_pixels
    half = len(steps) // 2
    assert steps[:half] == steps[half:], "the control learns for as long"


def test_the_control_of_a_finished_start_has_its_predictor_trained_first_too(model, source, steps):
    start = verbs.call("finetune", model, source, train="predictor", **SHORT, baselines=False)["weights"]
    earlier = list(steps)
    plan = plan_of("finetune", model, source, train="both", start=start, **SHORT)
    verbs.call("finetune", model, source, train="both", start=start, **SHORT)
    later = steps[len(earlier) :]
    assert plan["steps"] == sum(later)
    ours = (len(later) - len(earlier)) // 2
    assert later[ours:] == earlier + later[:ours]


def test_a_start_that_finetuning_refuses_is_refused_before(model, source):
    with pytest.raises(UserError, match="There is no finetuned classifier in nowhere"):
        plan_of("finetune", model, source, train="both", start="nowhere", **SHORT)
    start = verbs.call("finetune", model, source, train="predictor", **SHORT, baselines=False)["weights"]
    again: dict[str, Any] = {**SHORT, "baselines": False, "train": "both", "start": start, "size": 24}
    for call in (plan_of, verbs.call):
        with pytest.raises(UserError, match=r"was trained at 16 px, not at 24; give --size 16"):
            call("finetune", model, source, **again)


def test_steps_of_a_figure_of_efficiency(model, source, steps):
    how = {**SHORT, "lrs": (1e-3,), "depths": (1,), "blocks": (1,)}
    plan = plan_of("efficiency", model, source, **how)
    assert len(plan["trainings"]) == 4
    verbs.call("efficiency", model, source, **how)
    assert plan["steps"] == sum(steps)
    again = plan_of("efficiency", model, source, **how)
    assert (again["trainings"], again["steps"], again["seconds"]) == ([], 0, 0), "all points are there"
    del steps[:]
    more = {**how, "depths": (1, 2)}
    plan = plan_of("efficiency", model, source, **more)
    assert plan["trainings"] == ["pretrained predictor, 2 of 2 blocks", "random predictor, 2 of 2 blocks"]
    verbs.call("efficiency", model, source, **more)
    assert plan["steps"] == sum(steps)


@pytest.mark.parametrize("count", [2, 3])
def test_steps_of_several_tasks(model, source, steps, count):
    tasks = tuple(f"task{number}={source}" for number in range(count))
    plan = plan_of("multitask", model, task=tasks, **{**SHORT, "epochs": 1, "batch_size": 12})
    verbs.call("multitask", model, task=tasks, **{**SHORT, "epochs": 1, "batch_size": 12})
    assert plan["images"] == 40 * count
    # Together, each task alone at equal total steps, each alone at equal updates; two trials and a training of each.
    assert plan["steps"] == sum(steps)
    assert plan["learning_rates_tried"] == 2 * (1 + 2 * count)
    assert len(steps) == 3 * (1 + 2 * count)


def test_steps_of_a_segmentation(model, tmp_path, steps):
    masks = np.random.default_rng(0).integers(0, 2, (12, 4, 6), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    np.savez(tmp_path / "parts.npz", images=np.stack([masks] * 3, axis=-1) * 200, masks=masks)
    how = {**SHORT, "head": "linear", "ignore_index": -1, "train": "head"}
    plan = plan_of("segment", model, str(tmp_path / "parts.npz"), **how)
    assert not (Path(model) / "eval").exists()
    verbs.call("segment", model, str(tmp_path / "parts.npz"), **how)
    assert plan["steps"] == sum(steps)
