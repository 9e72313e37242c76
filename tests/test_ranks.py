"""Evaluations on two ranks give the numbers of one process, write once, and end together."""

import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from conftest import pictures_file, tiny, trained_on
from evaluation.planted import exported
from picture_files import noise
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import Tensor

from iwm import cli, config, verbs
from iwm.evaluation import after_pretraining
from iwm.evaluation.tasks import embed
from iwm.run_folder import RunFolder
from iwm.runtime import distributed
from iwm.runtime.console import console
from iwm.training import loop
from iwm.training.callbacks import State

TOLERANCE = 1e-4
"""Relative, in float32: batches are cut otherwise, and sums taken in another order."""
SPEED = {"speed.precision": "fp32", "speed.device": "cpu", "speed.workers": 0}
TRAINED = {"epochs": 2, "search_epochs": 1, "lrs": (1e-3, 4e-3), "ratios": (1.0,), "views": 2, "batch_size": 15}
SHORT = {**TRAINED, "lrs": (1e-3,), "baselines": False}
ONE = {"epochs": 1, "lrs": (1e-3,), "batch_size": 15}
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "world": ("world", {"images": 7, "bank": 8}),
    "kNN": ("probe", {"kind": "knn"}),
    "linear": ("probe", {"kind": "linear", "baselines": False}),
    "attentive": ("probe", {**ONE, "kind": "attentive", "baselines": False}),
    "instances": ("probe", {"kind": "instance", "undo": True, "gallery": 15}),
    "predictor": ("finetune", {**TRAINED, "train": "predictor"}),
    "predictor, drop path, random actions": ("finetune", {**SHORT, "drop_path": 0.3, "action": "random", "seed": 1}),
    "encoder, mixed": ("finetune", {**SHORT, "train": "encoder", "mixup": 0.8, "cutmix": 1.0, "views": 0}),
    "end to end": ("finetune", {**SHORT, "train": "both", "clip": 1.0, "ema": 0.9}),
    "UperNet": ("segment", {**SHORT, "train": "predictor", "channels": 8, "batch_size": 7}),
    "linear pixels": ("segment", {**SHORT, "train": "encoder", "head": "linear", "batch_size": 5}),
    "tasks": ("multitask", {**ONE, "ratios": (1.0,)}),
    "efficiency": ("efficiency", {**ONE, "ratios": (1.0,), "depths": (1,), "blocks": (1,), "views": 1}),
    "undo": ("undo", {"images": 13, "train_images": 41, "guesses": 1}),
    "decoder": ("decoder", {"images": 31, "test_images": 5, "bank": 4, "head": "linear"}),
}
LEARNED = [name for name, (verb, _) in ALL.items() if verb in ("finetune", "segment", "multitask")]
LOOSER = {"UperNet": 5e-3}
"""The biases before its batch norms have gradients of rounding errors alone, of which AdamW makes whole steps."""
UNLIKE = {
    *("date", "command", "hardware", "train_images_per_second", "encode_seconds"),
    *("path", "weights", "started_from", "start", "fingerprint", "decoder"),
}
"""What no two runs have in common."""


def classes_by_masks(path: Path) -> str:
    """Pictures with a mask: which pixels are bright."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for prefix, number in (("", 21), ("val_", 5)):
        masks = np.zeros((number, 20, 24), dtype=np.uint8)
        for mask in masks:
            top, left = generator.integers(0, 10, 2)
            mask[top : top + 10, left : left + 10] = 1
        noisy = generator.integers(0, 60, (number, 20, 24, 3))
        arrays |= {f"{prefix}images": (noisy + 150 * masks[..., None]).astype(np.uint8), f"{prefix}masks": masks}
    np.savez(path, **arrays)
    return str(path)


def evaluate(folder: str, out: str) -> None:
    """Every verb of ALL, and predictions of a classifier, into folder/out."""
    place, results = Path(folder), {}
    for name, (verb, options) in ALL.items():
        source = str(place / ("boxes.npz" if verb == "segment" else "pictures.npz"))
        data = {"task": (f"one={source}", f"other={source}")} if verb == "multitask" else {"data": source}
        where = {"out": str(place / out / name.replace(" ", "-").replace(",", ""))}
        found = verbs.call(verb, str(place / "run"), **{**data, **where, **SPEED, **options})
        results[name] = dict(found)
        if name == "predictor":
            lines = verbs.call("predict", found["weights"], source, out=str(place / f"{out}.csv"), **SPEED)
            results["predict"] = {"lines": [line["prediction"] for line in lines]}
    rank = os.environ.get("RANK", "one")
    (place / f"{out}-{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of one process, of two ranks as rank 0 and as rank 1 have them; files lie in "folder"."""
    folder = tmp_path_factory.mktemp("evaluations")
    source = str(pictures_file(folder / "pictures.npz", count=61, labelled=True))
    classes_by_masks(folder / "boxes.npz")
    loop.pretrain(trained_on(tiny(), source=source, out=str(folder / "run")))
    both = ranks.start(2, folder, evaluate, str(folder), "two")
    evaluate(str(folder), "one")
    assert both.wait() == [0, 0], both.texts
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("one-one", "two-0", "two-1")}
    return {**read, "folder": {"path": folder}}


def assert_same(mine: Any, yours: Any, tolerance: float, at: str = "") -> None:
    """Numbers agree within the tolerance, everything else altogether."""
    if isinstance(mine, dict):
        assert mine.keys() - UNLIKE == yours.keys() - UNLIKE, at
        for key in mine.keys() - UNLIKE:
            assert_same(mine[key], yours[key], tolerance, f"{at}/{key}")
    elif isinstance(mine, list):
        assert len(mine) == len(yours), at
        for number, (one, other) in enumerate(zip(mine, yours, strict=True)):
            assert_same(one, other, tolerance, f"{at}/{number}")
    elif isinstance(mine, float):
        assert yours == pytest.approx(mine, rel=tolerance, abs=tolerance / 10), at
    else:
        assert mine == yours, at


def weights_of(result: dict[str, Any]) -> Tensor:
    """All weights of what was trained, one after the other."""
    tensors = load_file(Path(result["weights"]) / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("name", LEARNED)
def test_two_ranks_learn_the_weights_of_one_process(results, name):
    one, two = (weights_of(results[who][name]) for who in ("one-one", "two-0"))
    assert float((two - one).norm() / one.norm()) < LOOSER.get(name, 1e-5)


@pytest.mark.parametrize("name", [*ALL, "predict"])
def test_two_ranks_measure_what_one_process_does(results, name):
    assert_same(results["one-one"][name], results["two-0"][name], TOLERANCE, name)
    assert results["two-1"][name] == results["two-0"][name]


def test_rank_0_alone_writes_and_prints(results):
    folder = results["folder"]["path"]
    for name in ("world", "UperNet"):
        written = [sorted(path.name for path in (folder / who / name / "eval").iterdir()) for who in ("one", "two")]
        assert written[0] == written[1]
    text = (folder / "rank-0.txt").read_text()
    assert text.count("Written to") == (folder / "rank-1.txt").read_text().count("Written to") + 17


def with_twin(folder: str, source: str) -> None:
    """The world model beside its twin on a frozen random encoder, which is trained for it."""
    numbers = verbs.call("world", f"{folder}/run", data=source, frozen_random_twin=True, images=7, bank=8, **SPEED)
    if os.environ.get("RANK", "0") == "0":
        Path(folder, "numbers.json").write_text(json.dumps(dict(numbers)))


def test_two_ranks_train_and_measure_the_twin_of_one_process(tmp_path):
    source = str(pictures_file(tmp_path / "pictures.npz", count=61, labelled=True))
    loop.pretrain(trained_on(tiny(), source=source, out=str(tmp_path / "one" / "run")))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    both = ranks.start(2, tmp_path / "two", with_twin, str(tmp_path / "two"), source, patience=5)
    with_twin(str(tmp_path / "one"), source)
    assert both.wait() == [0, 0], both.texts
    numbers, lines = [], []
    for place in ("one", "two"):
        numbers.append(json.loads((tmp_path / place / "numbers.json").read_text()))
        lines.append([line["loss"] for line in RunFolder(tmp_path / place / "run").twin.metric_lines()])
    assert lines[1] == pytest.approx(lines[0], rel=TOLERANCE)
    assert len(numbers[0]["frozen_random_twin"]) > 5
    assert_same(numbers[0]["frozen_random_twin"], numbers[1]["frozen_random_twin"], TOLERANCE)
    assert both.texts.count("Training the twin") == 1


def pictures_of(folder: Path, count: int = 61) -> list[str]:
    """Words for a verb: an untrained run and labelled pictures."""
    source = str(pictures_file(folder / "pictures.npz", count=count, labelled=True))
    return [exported(folder / "run"), "--data", source, "--speed.device", "cpu", "--speed.workers", "0"]


def dying(words: list[str]) -> int:
    """Rank 1 is killed at the fifth step of a training."""
    real = distributed.tick
    ticks = iter(range(5))

    def tick() -> None:
        if os.environ["RANK"] == "1" and next(ticks, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        real()

    distributed.tick = tick  # in a process of this test's own
    return cli.main(words)


def test_a_rank_that_dies_ends_an_evaluation_on_all(tmp_path):
    words = ["finetune", *pictures_of(tmp_path), "--train", "predictor", "--epochs", "500", "--lrs", "1e-3"]
    both = ranks.start(2, tmp_path, dying, [*words, "--ratios", "1"])
    assert both.wait(60) == [1, -signal.SIGKILL], both.texts
    assert f"Rank 1 (process {both.processes[1].pid} on" in both.text(0)
    assert re.search(r"has died or lost its network: no sign of life for \d+ s. All ranks stop; give", both.text(0))
    assert "Traceback" not in both.texts


def hanging(words: list[str]) -> int:
    """Rank 1 never comes out of the third block that it computes."""
    real, blocks = Block.forward, iter(range(2))

    def forward(self: Block, *values: Any, **how: Any) -> Tensor:
        if os.environ["RANK"] == "1" and next(blocks, None) is None:
            time.sleep(600)
        return real(self, *values, **how)

    Block.forward = forward  # in a process of this test's own
    return cli.main(words)


LONGER = [
    *(["finetune", "--train", "predictor", "--lrs", "1e-3"], ["finetune", "--train", "encoder", "--lrs", "1e-3"]),
    *(["probe", "--kind", "instance"], ["undo", "--guesses", "1"], ["decoder", "--bank", "4"], ["embed"]),
]
ENCODING = [["world", "--bank", "4"], ["probe"], *(pytest.param(words, marks=pytest.mark.long) for words in LONGER)]


@pytest.mark.parametrize("words", ENCODING, ids=" ".join)
def test_a_rank_that_hangs_while_an_evaluation_encodes_is_named(tmp_path, words):
    run, _, source, *device = pictures_of(tmp_path)
    given = [run, source, "--out", str(tmp_path / "e.npz")] if words[0] == "embed" else [run, "--data", source]
    both = ranks.start(2, tmp_path, hanging, [words[0], *given, *words[1:], *device])
    assert both.wait(60) == [1, 1], both.texts
    assert f"Rank 1 (process {both.processes[1].pid} on" in both.text(0)
    assert "hangs: the others have waited for it for" in both.text(0)
    assert "Traceback" not in both.texts


def elsewhere(words: list[str]) -> int:
    """Rank 1 looks for the pictures where there are none."""
    if os.environ["RANK"] == "1":
        words = [word.replace("pictures.npz", "nowhere.npz") for word in words]
    return cli.main(words)


@pytest.mark.parametrize("verb", ["world", "probe"])
def test_a_source_that_one_rank_does_not_find_ends_all_in_its_sentence(tmp_path, verb):
    both = ranks.start(2, tmp_path, elsewhere, [verb, *pictures_of(tmp_path)])
    assert both.wait(60) == [2, 2], both.texts
    assert "Rank 1 (process" in both.text(1)
    assert "nowhere.npz" in both.text(1)
    assert both.text(0).count("Traceback") == both.text(1).count("Traceback") == 0


def test_a_batch_smaller_than_the_ranks_is_refused(tmp_path):
    words = ["finetune", *pictures_of(tmp_path), "--train", "head", "--batch-size", "1", "--lrs", "1e-3"]
    both = ranks.start(2, tmp_path, cli.main, words)
    assert both.wait(60) == [2, 2], both.texts
    assert both.texts.count("A batch of 1 cannot be shared by 2 ranks; raise --batch-size, or start fewer.") == 1


def test_broken_images_are_left_out_wherever_they_lie(tmp_path):
    """Of the share of rank 1 all are broken, of that of rank 0 one. A source without a whole image is refused."""
    noise(tmp_path / "some" / "val", 6, broken=(1, 3, 4, 5))
    noise(tmp_path / "none" / "val", 4, broken=(0, 1, 2, 3))
    for source in ("some", "none"):
        noise(tmp_path / source / "train", 2)
    run = exported(tmp_path / "run")
    words = [run, "--bank", "4", "--speed.device", "cpu", "--speed.workers", "0"]
    both = ranks.start(2, tmp_path / "first", cli.main, ["world", *words, "--data", str(tmp_path / "some")])
    assert both.wait(60) == [0, 0], both.texts
    [result] = (Path(run) / "eval").glob("world-*.json")
    assert json.loads(result.read_text())["images"] == 2
    both = ranks.start(2, tmp_path / "second", cli.main, ["world", *words, "--data", str(tmp_path / "none")])
    assert both.wait(60) == [2, 2], both.texts
    assert "can be decoded; check its files" in both.texts


def embedded(words: list[str]) -> int:
    """Three images a rank at once."""
    embed.AT_ONCE = 3 * 3 * 32 * 32
    return cli.main(words)


def test_two_ranks_embed_what_one_process_does(tmp_path):
    """In the order of the source, without the broken images; of one piece all of a share is broken."""
    noise(tmp_path / "some", 17, broken=(3, 4, 5, 9, 16))
    words = ["embed", exported(tmp_path / "run"), str(tmp_path / "some"), "--speed.device", "cpu", "--out"]
    assert cli.main([*words, str(tmp_path / "one.npz")]) == 0
    both = ranks.start(2, tmp_path / "ranks", embedded, [*words, str(tmp_path / "two.npz")])
    assert both.wait(60) == [0, 0], both.texts
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert one["paths"].tolist() == two["paths"].tolist()
    assert len(one["paths"]) == 12
    np.testing.assert_allclose(two["embeddings"], one["embeddings"], rtol=1e-4, atol=1e-5)
    assert both.texts.count("5 broken images were left out") == 1


def closed_without_a_probe(settings: config.Config, alone: bool) -> None:
    """Of the pictures one is held out, too few for a probe; or rank 1 alone does not find them."""
    real = after_pretraining.probes.probe

    def probe(how: Any) -> Any:
        return real(replace(how, data="/no/such/place") if alone and os.environ["RANK"] == "1" else how)

    after_pretraining.probes.probe = probe  # in a process of this test's own
    sys.exit(cli.main(["pretrain", "--config", str(Path(settings.run.out).parent / "config.yaml")]))


@pytest.mark.parametrize("alone", [False, True])
def test_a_finished_training_without_its_closing_probe_is_finished_unless_one_rank_fails_alone(tmp_path, alone):
    source = pictures_file(tmp_path / "pictures.npz", count=14, validation=False)  # of which one is held out
    optim = replace(tiny().optim, batch_size=8, lr_batch=8)
    settings = trained_on(tiny(optim=optim), source=str(source), out=str(tmp_path / "run"))
    config.save(settings, tmp_path / "config.yaml")
    both = ranks.start(2, tmp_path, closed_without_a_probe, settings, alone)
    assert both.wait() == (2 * [2 if alone else 0]), both.texts
    assert RunFolder(tmp_path / "run").model.is_dir()
    sentence = "What the encoder knows was not measured. 'pictures' (val) holds a single image"
    assert " ".join(both.texts.split()).count(sentence) == (not alone)
    assert ("Rank 1 (process" in both.text(1)) == alone
    assert ("/no/such/place" in both.text(1)) == alone


class Measuring:
    """A callback that measures the run in training, and at its end trains another."""

    def on_checkpoint(self, state: State, path: Path) -> None:
        source = state.settings.data.source
        run = exported(state.run.path.parent / f"at-{state.step}")
        numbers = verbs.call("probe", run, data=source, kind="instance", baselines=False, **SPEED)
        console.print(f"measured {numbers['n_val']}")
        if state.final:
            loop.pretrain(replace(state.settings, run=replace(state.settings.run, out=f"{state.run.path}-alone")))


def measured_meanwhile(settings: config.Config) -> None:
    after_pretraining.pretrain(settings, callbacks=[Measuring()])


def test_training_is_measured_by_a_callback_of_rank_0_alone_and_afterwards_by_all(tmp_path):
    source = str(pictures_file(tmp_path / "pictures.npz", count=32))
    both = ranks.start(2, tmp_path, measured_meanwhile, trained_on(tiny(), source=source, out=str(tmp_path / "run")))
    assert both.wait(90) == [0, 0], both.texts
    assert both.text(0).count("measured 8") == 2
    assert "Without labels: of 8 held-out images" in both.text(0)
    assert both.text(1) == ""
    assert RunFolder(tmp_path / "run-alone").model.is_dir()
