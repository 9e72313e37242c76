"""Each kind of probe against brute force, and a kind of one's own."""

import json
import math
from pathlib import Path

import pytest
import torch

import iwm
from evaluation.planted import clouds, corners, exported
from iwm import cli
from iwm.evaluation.tasks import probe_kinds
from iwm.evaluation.tasks.probe_kinds import PROBES, probe_of
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.probe import ProbeSettings


def test_knn_against_brute_force():
    train, labels = clouds(120, 16, 4)
    test, _ = clouds(30, 16, 4, seed=1)
    found = probe_kinds.knn_scores(train, labels, test, 4, k=7, temperature=0.1)
    for image in range(30):
        cosines = [float(test[image] @ z / (test[image].norm() * z.norm())) for z in train]
        wanted = [0.0] * 4
        for near in sorted(range(120), key=lambda i: -cosines[i])[:7]:
            wanted[int(labels[near])] += math.exp((cosines[near] - 1) / 0.1)
        torch.testing.assert_close(found[image].tolist(), wanted, rtol=1e-4, atol=1e-9)


def test_knn_takes_no_more_neighbours_than_there_are():
    train, labels = clouds(10, 16, 2)
    outcome = probe_of(ProbeSettings(kind="knn", k=50), CPU).evaluate(train, labels, train, 2)
    assert outcome.chosen["k"] == 10


def test_the_linear_probe_lists_every_strength_and_takes_the_best():
    train, labels = clouds(600, 24, 5)
    settings = ProbeSettings(kind="linear")
    outcome = probe_of(settings, CPU).evaluate(train, labels, train, 5)
    assert [row["l2"] for row in outcome.tried][:5] == list(settings.l2)
    best = max(row["tenth_top1"] for row in outcome.tried)
    assert {"l2": outcome.chosen["l2"], "tenth_top1": best} in outcome.tried


def planted(strength: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training features whose best penalty is a very weak or a very strong one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    values = torch.randn(400, 400 if strength == "strong" else 20, generator=generator)
    if strength == "weak":  # the class is a small difference of two large, nearly equal features
        values[:, 1] = values[:, 0] + 3e-3 * (2 * labels - 1) + 1e-3 * values[:, 2]
    else:  # every feature says a little
        values += 0.09 * (2 * labels - 1)[:, None]
    return values, labels


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_the_linear_probe_does_not_end_at_an_end_of_its_grid(strength):
    values, labels = planted(strength)
    settings = ProbeSettings(kind="linear")
    outcome = probe_of(settings, CPU).evaluate(values, labels, values, 2)
    chosen = outcome.chosen["l2"]
    assert chosen < 1e-5 if strength == "weak" else chosen > 1e-1, outcome.tried
    assert outcome.at_grid_end == {}
    assert len(outcome.tried) > 5
    given = probe_of(ProbeSettings(kind="linear", l2=(1e-3, 1e-2)), CPU).evaluate(values, labels, values, 2)
    assert [row["l2"] for row in given.tried] == [1e-2, 1e-3], "a grid of one's own is kept"
    assert given.at_grid_end


@pytest.fixture
def source(tmp_path: Path) -> tuple[str, str]:
    return corners(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return exported(tmp_path / "run")


class Nearest(probe_kinds.FeatureProbe):
    """One neighbour by squared distance."""

    name = "mine"

    @property
    def words(self):
        return ["squared"]

    def evaluate(self, train, labels, test, classes, tried=()):
        nearest = torch.cdist(test, train).argmin(dim=1)
        return probe_kinds.Answer(torch.nn.functional.one_hot(labels[nearest], classes).float())


def test_a_kind_of_ones_own_is_a_class_in_the_table(run, source, monkeypatch, capsys):
    command = ["probe", run, "--data", source[0], "--val", source[1], "--kind", "mine", "--speed.device", "cpu"]
    assert cli.main(command) == 2
    assert "iwm.register_probe(CLASS)" in capsys.readouterr().err
    monkeypatch.setitem(PROBES, "mine", Nearest)  # so that it is gone again after the test
    assert iwm.register_probe(Nearest) is Nearest
    assert cli.main(command) == 0
    content = json.loads((Path(run) / "eval" / "probe-mine-squared-corners.json").read_text())
    assert (content["kind"], content["pooling"], content["raw_pixels_probe"]) == ("mine", "mean", "mine")
    assert content["top1"] > 0.5
    assert len(content["raw_pixels_tried"]) == 2
    monkeypatch.setattr(Nearest, "name", "knn")
    with pytest.raises(UserError, match="'knn' is a built-in --kind"):
        iwm.register_probe(Nearest)
