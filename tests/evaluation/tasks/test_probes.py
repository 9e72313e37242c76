"""kNN against brute force, and what a probe may and may not look at."""

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

from evaluation.planted import clouds, corners, exported
from iwm import config
from iwm.evaluation.tasks import probes
from iwm.evaluation.tasks.fitting import Schedule
from iwm.runtime.errors import UserError

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK = probes.ProbeSettings(lrs=(3e-3,), schedule=Schedule(epochs=3, batch_size=64), l2=(1e-1, 1e-3))


def test_knn_against_brute_force():
    train, labels = clouds(120, 16, 4)
    test, _ = clouds(30, 16, 4, seed=1)
    found = probes.knn_scores(train, labels, test, 4, k=7, temperature=0.1)
    for image in range(30):
        cosines = [float(test[image] @ z / (test[image].norm() * z.norm())) for z in train]
        wanted = [0.0] * 4
        for near in sorted(range(120), key=lambda i: -cosines[i])[:7]:
            wanted[int(labels[near])] += math.exp((cosines[near] - 1) / 0.1)
        torch.testing.assert_close(found[image].tolist(), wanted, rtol=1e-4, atol=1e-9)


def test_knn_takes_no_more_neighbours_than_there_are():
    train, labels = clouds(10, 16, 2)
    outcome = probes.evaluate(train, labels, train, 2, probes.ProbeSettings(kind="knn", k=50), SPEED)
    assert outcome.chosen["k"] == 10


def test_the_linear_probe_lists_every_strength_and_takes_the_best():
    train, labels = clouds(600, 24, 5)
    settings = probes.ProbeSettings(kind="linear")
    outcome = probes.evaluate(train, labels, train, 5, settings, SPEED)
    assert [row["l2"] for row in outcome.tried] == list(probes.L2_GRID)
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
    found = probes.probe(run, source[0], kind, val=source[1], settings=QUICK, speed=replace(SPEED, threads=3))
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
    first = probes.probe(run, source[0], "linear", val=source[1], speed=SPEED)
    arrays = dict(np.load(source[1]))
    arrays["labels"] = 1 - arrays["labels"]
    np.savez(tmp_path / "other.npz", **arrays)
    second = probes.probe(run, source[0], "linear", val=str(tmp_path / "other.npz"), speed=SPEED)
    for key in ("chosen", "tried", "raw_pixels_side", "raw_pixels_tried", "random_encoder_chosen"):
        assert first[key] == second[key]
    assert second["top1"] == pytest.approx(1 - first["top1"])
    assert first["path"] != second["path"]


def test_variants_have_names_of_their_own(run, source):
    options: dict[str, Any] = {"val": source[1], "speed": SPEED, "baselines": False}
    changes: list[dict[str, Any]] = [{}, {"student": True}, {"layer": 1}, {"seed": 3}, {}]
    changes.append({"settings": probes.ProbeSettings(pooling="max")})
    names = [Path(probes.probe(run, source[0], "knn", **options, **more)["path"]).name for more in changes]
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
    how: dict[str, Any] = {"val": source[1], "settings": QUICK, "speed": SPEED, "baselines": False, "size": 32}
    found = probes.probe(run, source[0], "linear", beside=name, **how)
    assert Path(found["path"]).name == "probe-linear-beside-timm-vit_tiny_patch16_224-corners.json"
    alone = probes.probe(name, source[0], "linear", out=str(tmp_path), **how)
    assert found["other_encoder"] == name
    assert found["other_encoder_top1"] == alone["top1"]
    assert found["top1"] == probes.probe(run, source[0], "linear", **how)["top1"]
    with pytest.raises(UserError, match="timm has no model"):
        probes.probe(run, source[0], "linear", beside="timm:no_such_model", **how)


def test_there_are_three_kinds(run, source):
    with pytest.raises(UserError, match="did you mean 'linear'"):
        probes.probe(run, source[0], "liner")
