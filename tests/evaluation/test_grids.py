"""A search that ends at an end of its grid says so, in the result and on the console."""

import json
from pathlib import Path

import pytest
import torch

from iwm.evaluation.grids import grid_ends, sentences, untried
from iwm.evaluation.ritual import Evaluation, Outcome
from iwm.evaluation.tasks import linear
from iwm.evaluation.tasks.fitting import Learner, Samples, choose
from iwm.runtime.devices import CPU
from iwm.verbs.probe import ProbeSettings
from iwm.verbs.shared import Schedule

TRIED = [{"lr": lr, "ratio": ratio, "epochs": 2} for lr in (1e-3, 3e-3, 1e-2) for ratio in (0.1, 1.0)]


@pytest.mark.parametrize(
    ("choice", "ends"),
    [
        ({"lr": 3e-3, "ratio": 1.0}, {"ratio": "highest of 0.1, 1"}),
        ({"lr": 1e-2, "ratio": 0.1}, {"lr": "highest of 0.001, 0.003, 0.01", "ratio": "lowest of 0.1, 1"}),
        ({"lr": 3e-3}, {}),
    ],
)
def test_ends_are_the_lowest_and_the_highest_of_what_was_tried(choice, ends) -> None:
    assert grid_ends(choice, TRIED) == ends


def test_what_was_not_searched_has_no_ends() -> None:
    assert grid_ends({"lr": 1e-3}, []) == {}
    assert grid_ends({"lr": 1e-3}, [{"lr": 1e-3}]) == {}
    assert grid_ends({"k": 20, "pooling": "mean"}, [{"pooling": "mean"}, {"pooling": "max"}]) == {}


def test_every_search_of_a_result_is_told_with_its_place() -> None:
    ends = {"lr": "highest of 1, 2"}
    content = {
        "at_grid_end": ends,
        "random_encoder_at_grid_end": ends,
        "tasks": {"birds": {"single_task_at_grid_end": ends, "at_grid_end": {}}},
        "points": [{"what": "attentive head", "at_grid_end": ends}],
    }
    places = [sentence.split(" best ")[0] for sentence in sentences(content)]
    assert places == ["The", "random encoder: the", "tasks, birds, single task: the", "points, attentive head: the"]
    assert next(sentences(content)) == "The best lr is the highest of 1, 2; a better one may lie beyond."


def test_the_ritual_prints_what_the_result_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Evaluation("probe", "hf-hub:a/b", str(tmp_path), CPU)
    content = work.conclude(
        Outcome(data="d", payload={"at_grid_end": {"l2": "lowest of 1, 2"}}, settings={}), lambda _: None
    )
    assert "The best l2 is the lowest of 1, 2" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads(Path(content["path"]).read_text())["at_grid_end"] == {"l2": "lowest of 1, 2"}


def test_where_nothing_can_be_tried_the_middle_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert untried(TRIED) == {"lr": 3e-3, "ratio": 0.1, "epochs": 2}
    assert "too few to hold some out" in capsys.readouterr().err.replace("\n", " ")
    assert untried([{"l2": 5.0}]) == {"l2": 5.0}
    assert capsys.readouterr().err == "", "there was no choice"


def test_a_training_with_one_image_a_class_takes_the_middle_rate() -> None:
    samples = Samples(torch.eye(3)[None], torch.arange(3))

    def make(choice: dict[str, float]) -> Learner:
        head = torch.nn.Linear(3, 3)
        return Learner(head, head, [{"params": list(head.parameters()), **choice}])

    rates = [{"lr": lr} for lr in (1e-4, 1e-3, 1e-2)]
    trained = choose(make, rates, samples, Schedule(epochs=1, clip=0), seed=0, session=CPU, title="")
    assert (trained.choice, trained.tried, trained.at_grid_end) == ({"lr": 1e-3}, [], {})


def test_a_training_whose_best_rate_is_the_highest_says_so() -> None:
    values = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    samples = Samples(values[None], (values[:, 0] > 0).long())

    def make(choice: dict[str, float]) -> Learner:
        torch.manual_seed(0)
        head = torch.nn.Linear(4, 2)
        return Learner(head, head, [{"params": list(head.parameters()), **choice}])

    def ends(*lrs: float) -> dict[str, str]:
        schedule = Schedule(epochs=2, search_epochs=2, batch_size=20, clip=0)
        trained = choose(make, [{"lr": lr} for lr in lrs], samples, schedule, seed=0, session=CPU, title="")
        return trained.at_grid_end

    assert ends(1e-7, 1e-2) == {"lr": "highest of 1e-07, 0.01"}
    assert ends(1e-2) == {}


def test_a_ridge_whose_best_strength_is_the_weakest_says_so() -> None:
    values = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    exact = linear.choose_ridge(values, values[:, :1], 0)
    assert exact.at_grid_end == {"l2": "lowest of 1e-08, 1e-07, 1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1"}


def test_the_attentive_probes_grid_reaches_three_hundredths() -> None:
    assert ProbeSettings(kind="attentive").lrs == (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
