"""kNN against brute force, the linear probe against scikit-learn, and what a probe may and may not look at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

import iwm
from evaluation.planted import corners, exported
from iwm import config
from iwm.evaluation.tasks import probes
from iwm.model.encoder import PatchEncoder
from iwm.runtime.errors import UserError
from iwm.verbs.probe import Probe
from iwm.verbs.shared import Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK: dict[str, Any] = {"lrs": (3e-3,), "schedule": Schedule(epochs=3, batch_size=64), "l2": (1e-1, 1e-3)}


def probe(run: str, data: str, kind: str = "linear", **options: Any) -> dict[str, Any]:
    return probes.probe(Probe(run=run, data=data, kind=kind, **{"speed": SPEED, **options}))


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
    wanted = {
        "at_grid_end",
        "random_encoder_at_grid_end",
        "raw_pixels_at_grid_end",
        "top1",
        "top5",
        "balanced_top1",
        "random_encoder_top1",
        "raw_pixels_top1",
        "chosen",
        "tried",
        "chance",
    }
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


@pytest.mark.parametrize(
    ("kind", "chosen"), [("linear", {"l2": 1e-3}), ("attentive", {"lr": 3e-3}), ("knn", {"k": 3, "temperature": 0.07})]
)
def test_with_one_image_a_class_nothing_is_tried_and_one_warning_says_so(run, tmp_path, capsys, kind, chosen):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=images[:3], labels=np.arange(3))
    np.savez(tmp_path / "val.npz", images=images[3:], labels=np.arange(3))
    schedule = Schedule(epochs=1)
    found = probe(run, str(tmp_path / "one.npz"), kind, val=str(tmp_path / "val.npz"), schedule=schedule)
    assert (found["chosen"], found["tried"], found["random_encoder_chosen"]) == (chosen, [], chosen)
    assert (found["raw_pixels_side"], found["raw_pixels_tried"]) == (8, [])
    streams = capsys.readouterr()
    assert " ".join(streams.err.split()).count("too few to hold some out") == 1
    assert "tenth" not in streams.out


def unbalanced(folder: Path) -> tuple[str, str]:
    """Of 100 named classes two occur: 30 and 10 training images, 12 and 8 test images."""
    paths = []
    for name, counts in (("lopsided", (30, 10)), ("lopsided-val", (12, 8))):
        images = np.random.default_rng(sum(counts)).integers(0, 256, (sum(counts), 16, 16, 3), dtype=np.uint8)
        labels = np.repeat([7, 3], counts)
        np.savez(folder / f"{name}.npz", images=images, labels=labels, classes=[f"c{i}" for i in range(100)])
        paths.append(str(folder / f"{name}.npz"))
    return paths[0], paths[1]


def test_chance_counts_the_classes_that_occur_and_the_most_frequent_one_stands_beside(run, tmp_path, capsys):
    data, val = unbalanced(tmp_path)
    found = probe(run, data, "knn", val=val, baselines=False)
    assert (found["chance"], found["majority_top1"]) == (0.5, 0.6)
    assert "majority_top1" not in capsys.readouterr().out, "0.6 is not half as much again as chance"
    probes.printing("A probe", probes.SHOWN)({"top1": 0.9, "chance": 0.5, "majority_top1": 0.8})
    words = capsys.readouterr().out
    assert words.index("chance") < words.index("majority_top1") < words.index("0.8")
    probes.printing("An old probe", probes.SHOWN)({"top1": 0.9, "chance": 0.5})
    assert "majority_top1" not in capsys.readouterr().out


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


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_several_layers_are_probed_beside_the_last_block(run, source, kind):
    options: dict[str, Any] = {"val": source[1], "l2": QUICK["l2"]}
    alone, both, every = (probe(run, source[0], kind, **options, layers=layers) for layers in (0, 2, "all"))
    assert Path(both["path"]).name == f"probe-{kind}-layers2-corners.json"
    assert every["path"] == both["path"], "all are the two there are"
    assert (both["layers"], "layers" in alone, "last_block_top1" in alone) == (2, False, False)
    assert both["last_block_top1"] == alone["top1"]
    assert both["random_encoder_last_block_top1"] == alone["random_encoder_top1"]
    assert {"random_encoder_top1", "raw_pixels_top1"} <= set(both)
    beside = probe(run, source[0], kind, **options, layers=2, encoder=run, baselines=False)
    assert beside["other_encoder_top1"] == both["top1"]
    assert beside["other_encoder_last_block_top1"] == alone["top1"]


def test_several_layers_and_the_last_block_are_read_in_one_pass(run, source, monkeypatch):
    """An encoder runs once over the 96 + 40 images, not once for the layers and once for the last block."""
    shown = []
    read = PatchEncoder.intermediates

    def counting(self, images, *rest, **more):
        shown.append(len(images))
        return read(self, images, *rest, **more)

    monkeypatch.setattr(PatchEncoder, "intermediates", counting)
    found = probe(run, source[0], "knn", val=source[1], layers="all", baselines=False)
    count = found["n_train"] + found["n_val"]
    assert count <= sum(shown) <= count + 2, "and an empty image a split, to see how wide the last block is"


def test_quarters_have_a_name_of_their_own(run, source):
    found = probe(run, source[0], "linear", val=source[1], l2=QUICK["l2"], pooling="2x2", baselines=False)
    assert Path(found["path"]).name == "probe-linear-2x2-corners.json"
    assert found["top1"] > probe(run, source[0], "linear", val=source[1], l2=QUICK["l2"], baselines=False)["top1"]


def test_layers_that_make_no_sense_are_refused_before_any_work(run):
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--layers -1: give 1 or more, or all", {"layers": -1}),
        ("--layer 1 takes one block and --layers all the last ones", {"layer": 1, "layers": "all"}),
        ("--kind attentive reads the tokens of one block", {"kind": "attentive", "layers": 2}),
        ("There are no 5 layers in an encoder of 2 blocks", {"layers": 5}),
    )
    for words, options in refused:
        with pytest.raises(UserError, match=words):
            probe(run, "nowhere", **options)
    with pytest.raises(UserError, match="Setting 'layers' must be int, got 'two'"):
        iwm.probe(run, data="nowhere", layers="two")


def test_a_result_says_by_which_seeds_its_noise_was_drawn(run, source):
    found = probe(run, source[0], "attentive", val=source[1], seed=3, **QUICK)
    assert found["seeds"] == {"tenth": 3, "head": 3, "batches": 3, "random_encoder": 4}
    head = "the first weights of the head (seed 3), the order of the images (seed 3), the weights of the random encoder"
    tenth = "Drawn at random: the tenth of the training images that chooses"
    one_rate = f"{tenth} the size of the raw pixels (seed 3), {head} (seed 4)."
    assert probes.sentence_of_draws(found) == one_rate
    searched = found | {"tried": [{"lr": 1e-3}, {"lr": 3e-3}]}
    assert probes.sentence_of_draws(searched) == f"{tenth} settings (seed 3), {head} (seed 4)."
    alone = probe(run, source[0], "linear", val=source[1], baselines=False, **QUICK)
    assert (alone["seeds"], alone["tenths"]) == ({"tenth": 0}, 5)
    wanted = "Drawn at random: the 5 tenths of the training images that choose settings (seed 0)."
    assert probes.sentence_of_draws(alone) == wanted
    nothing = probe(run, source[0], "knn", val=source[1], baselines=False)
    assert (nothing["seeds"], probes.sentence_of_draws(nothing)) == ({}, "")
    sentence = probes.sentence_of_draws(probe(run, source[0], "knn", val=source[1]))
    assert sentence == f"{tenth} the size of the raw pixels (seed 0), the weights of the random encoder (seed 1)."


def test_every_accuracy_of_a_result_has_its_error(run, source):
    found = probe(run, source[0], "knn", val=source[1], layers=2, encoder=run)
    names = {"", "random_encoder_", "raw_pixels_", "last_block_", "random_encoder_last_block_", "other_encoder_"}
    for name in (*names, "other_encoder_last_block_"):
        top1 = found[f"{name}top1"]
        assert found[f"{name}top1_standard_error"] == pytest.approx((top1 * (1 - top1) / 160) ** 0.5), name


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


def test_there_are_three_kinds(run, source):
    with pytest.raises(UserError, match="did you mean 'linear'"):
        probe(run, source[0], "liner")
    with pytest.raises(UserError, match="--kind is 'knnn'; did you mean 'knn'"):
        probe("absent", "nowhere", "knnn")  # before any work


def test_images_are_never_both_learned_from_and_asked(source, tmp_path):
    for data, val in ((source[0], source[0]), (f"{source[0]},{source[1]}", source[1])):
        with pytest.raises(UserError, match="the very images that are trained on"):
            probes.labelled_splits(data, val)
    arrays = np.load(source[0])
    own = {f"val_{name}": arrays[name][:9] for name in arrays.files}
    np.savez(tmp_path / "own.npz", **arrays, **own)
    splits = probes.labelled_splits(str(tmp_path / "own.npz"), str(tmp_path / "own.npz"))
    assert (len(splits.train), len(splits.val)) == (320, 9)
