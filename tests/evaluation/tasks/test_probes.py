"""kNN against brute force, the linear probe against scikit-learn, and what a probe may and may not look at."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

import iwm
from evaluation.planted import corners, exported
from iwm import cli, config
from iwm.evaluation.tasks import probe_kinds, probes
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import fit_linear
from iwm.evaluation.tasks.probe_kinds import PROBES
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.probe import Probe, ProbeSettings
from iwm.verbs.shared import Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK: dict[str, Any] = {"lrs": (3e-3,), "schedule": Schedule(epochs=3, batch_size=64), "l2": (1e-1, 1e-3)}


def probe(run: str, data: str, kind: str = "linear", **options: Any) -> dict[str, Any]:
    return probes.probe(Probe(run=run, data=data, kind=kind, **{"speed": SPEED, **options}))


def clouds(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes in features of very different scales, correlated, one constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    fixed = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, width, generator=fixed) * 0.4
    mixing = torch.randn(width, width, generator=fixed) * torch.logspace(0, -2, width)
    values = (centres[labels] + torch.randn(count, width, generator=generator)) @ mixing
    values[:, 3] = 7.0
    return values, labels


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
    outcome = probes.evaluate(train, labels, train, 2, ProbeSettings(kind="knn", k=50), CPU)
    assert outcome.chosen["k"] == 10


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_logistic_regression_is_scikit_learns(l2):
    train, labels = clouds(1500, 24, 5)
    test, truth = clouds(1000, 24, 5, seed=1)
    ours = fit_linear(train, labels, 5, l2)
    scale = train.std(0, correction=0).clamp_min(1e-6)
    theirs = LogisticRegression(C=1 / (l2 * 1500), max_iter=10000, tol=1e-8)
    theirs.fit(((train - train.mean(0)) / scale).double().numpy(), labels.numpy())
    there = torch.from_numpy(theirs.predict_proba(((test - train.mean(0)) / scale).double().numpy())).float()
    here = ours.logits(test).softmax(1)
    assert abs(accuracy(here, truth) - accuracy(there, truth)) <= 0.01
    assert (here - there).abs().max() < 0.02
    assert accuracy(here, truth) > 0.3


def test_features_are_left_at_their_scale_when_asked():
    train, labels = clouds(800, 24, 5)
    ours = fit_linear(train, labels, 5, 1e-3, standardise=False)
    theirs = LogisticRegression(C=1 / (1e-3 * 800), max_iter=10000, tol=1e-8)
    theirs.fit(train.double().numpy(), labels.numpy())
    there = torch.from_numpy(theirs.predict_proba(train.double().numpy())).float()
    assert (ours.logits(train).softmax(1) - there).abs().max() < 0.02
    assert (fit_linear(train, labels, 5, 1e-3).logits(train).softmax(1) - there).abs().max() > 0.05


def test_the_linear_probe_lists_every_strength_and_takes_the_best():
    train, labels = clouds(600, 24, 5)
    settings = ProbeSettings(kind="linear")
    outcome = probes.evaluate(train, labels, train, 5, settings, CPU)
    assert [row["l2"] for row in outcome.tried] == list(settings.l2)
    best = max(row["tenth_top1"] for row in outcome.tried)
    assert {"l2": outcome.chosen["l2"], "tenth_top1": best} in outcome.tried


@pytest.fixture
def source(tmp_path: Path) -> tuple[str, str]:
    return corners(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return exported(tmp_path / "run")


@pytest.mark.parametrize("kind", ["knn", "linear", "attentive"])
def test_a_probe_says_all_that_it_promises(run, source, kind):
    found = probe(run, source[0], kind, val=source[1], **QUICK | {"speed": replace(SPEED, threads=3)})
    path = Path(run) / "eval" / f"probe-{kind}-corners.json"
    assert found["path"] == str(path)
    content = json.loads(path.read_text())
    assert path.with_suffix(".png").stat().st_size > 1000
    wanted = {"top1", "top5", "balanced_top1", "random_encoder_top1", "raw_pixels_top1", "chosen", "tried", "chance"}
    assert wanted | {"n_train", "n_val", "encoder", "layer", "pooling", "split"} <= set(content)
    assert content["top5"] == 1.0
    assert content["top5_is"] == "top-2"
    assert (content["n_train"], content["n_val"], content["chance"]) == (320, 160, 0.5)
    assert content["encoder"] == "EMA encoder"
    assert content["pooling"] == ("tokens" if kind == "attentive" else "mean")
    assert content["hardware"]["threads"] == 3
    assert content["raw_pixels_side"] in (8, 16)
    assert np.sum(content["confusion"]) == 160
    assert np.trace(content["confusion"]) / 160 == content["top1"]


def test_test_labels_have_no_say_in_what_is_chosen(run, source, tmp_path):
    first = probe(run, source[0], val=source[1])
    arrays = dict(np.load(source[1]))
    arrays["labels"] = 1 - arrays["labels"]
    np.savez(tmp_path / "other.npz", **arrays)
    second = probe(run, source[0], val=str(tmp_path / "other.npz"))
    for key in ("chosen", "tried", "raw_pixels_side", "raw_pixels_tried", "random_encoder_chosen"):
        assert first[key] == second[key]
    assert second["top1"] == pytest.approx(1 - first["top1"])
    assert first["path"] != second["path"]


def test_variants_have_names_of_their_own(run, source):
    options: dict[str, Any] = {"val": source[1], "baselines": False}
    changes: list[dict[str, Any]] = [{}, {"student": True}, {"layer": 1}, {"seed": 3}, {}]
    changes.append({"pooling": "max"})
    names = [Path(probe(run, source[0], "knn", **options, **more)["path"]).name for more in changes]
    assert names == [
        "probe-knn-corners.json",
        "probe-knn-student-corners.json",
        "probe-knn-layer1-corners.json",
        "probe-knn-seed3-corners.json",
        "probe-knn-corners.json",
        "probe-knn-max-corners.json",
    ]


def test_another_encoder_beside_goes_through_the_same_probe(run, source, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), weights)
    name = f"timm:vit_tiny_patch16_224,weights={weights}"
    how: dict[str, Any] = {"val": source[1], "baselines": False, "size": 32, **QUICK}
    found = probe(run, source[0], encoder=name, **how)
    assert Path(found["path"]).name == "probe-linear-beside-timm-vit_tiny_patch16_224-corners.json"
    alone = probe(name, source[0], out=str(tmp_path), **how)
    assert found["other_encoder"] == name
    assert found["other_encoder_top1"] == alone["top1"]
    assert found["top1"] == probe(run, source[0], **how)["top1"]
    with pytest.raises(UserError, match="timm has no model"):
        probe(run, source[0], encoder="timm:no_such_model", **how)


def classed(path: Path, labels: list[int] | None) -> str:
    arrays: dict[str, Any] = {"images": np.zeros((4, 16, 16, 3), dtype=np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("train", "val", "sentence"),
    [
        (None, None, "has no labels"),
        ([0, 0, 0, 0], [0, 0, 0, 0], "one class"),
        ([0, 0, 1, 1], [0, 1, 2, 2], "class"),
    ],
)
def test_sources_that_cannot_be_probed(tmp_path, train, val, sentence):
    with pytest.raises(UserError, match=sentence):
        probes.labelled_splits(classed(tmp_path / "train.npz", train), classed(tmp_path / "val.npz", val))


def test_there_are_three_kinds(run, source):
    with pytest.raises(UserError, match="did you mean 'linear'"):
        probe(run, source[0], "liner")
    with pytest.raises(UserError, match="--kind is 'knnn'; did you mean 'knn'"):
        probe("absent", "nowhere", "knnn")  # before any work


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


def test_images_are_never_both_learned_from_and_asked(source, tmp_path):
    for data, val in ((source[0], source[0]), (f"{source[0]},{source[1]}", source[1])):
        with pytest.raises(UserError, match="the very images that are trained on"):
            probes.labelled_splits(data, val)
    arrays = np.load(source[0])
    own = {f"val_{name}": arrays[name][:9] for name in arrays.files}
    np.savez(tmp_path / "own.npz", **arrays, **own)
    splits = probes.labelled_splits(str(tmp_path / "own.npz"), str(tmp_path / "own.npz"))
    assert (len(splits.train), len(splits.val)) == (320, 9)
