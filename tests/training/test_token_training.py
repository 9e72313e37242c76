"""A predictor on an encoder of others, frozen or trained, learns more than the position, and more than no change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import timm
import torch
from conftest import pictures_file, tiny
from PIL import Image
from tiny_encoders import SIZES

from iwm import config, run_folder
from iwm.data import loader as pictures
from iwm.data.sources import open_images
from iwm.model.pretrained import start_from_run
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.runtime.tensors import save_file
from iwm.training import loop, token_store, token_training
from iwm.training.validation import with_encoder


def settings(tmp_path: Path, kind: str, **changes: Any) -> config.Config:
    source, base = tmp_path / "pictures.npz", tiny()
    if not source.exists():
        pictures_file(source, count=64, size=32, labelled=True)
    encoder = {"name": f"timm:{kind},weights=random", "train": "none", "layer": 2, **changes.pop("encoder", {})}
    residual = changes.pop("residual", True)
    return replace(
        base,
        data=config.Data(source=str(source), image_size=SIZES[kind]),
        masks=config.Masks(sampler="none", predict="all"),
        encoder=config.Encoder(**encoder),
        predictor=replace(base.predictor, residual=residual, depth=1),
        objective=config.Objective(target_norm="change" if residual else "batch"),
        optim=replace(base.optim, epochs=25, lr=3e-3, kind="muon"),
        run=config.Run(out=str(tmp_path / kind), log_every=200, save_every=80),
        **changes,
    )


def last_line(run: Path) -> dict[str, Any]:
    return RunFolder(run).metric_lines()[-1]


@pytest.mark.parametrize("kind", SIZES)
def test_a_frozen_one_is_learned_on(tmp_path, kind):
    run = loop.pretrain(settings(tmp_path, kind))
    line = last_line(run)
    assert line["health_loss"] < 0.9 * line["position_mean_loss"]
    assert line["health_loss"] < 0.9 * line["identity_loss"]
    model = run_folder.load_model(str(run))
    assert model.encoder is model.target_encoder
    assert not any(name.startswith("encoder.") for name in model.state_dict())


def test_a_run_on_other_weights_cannot_replace_what_stands_still(tmp_path):
    """Its tokens are stored already, and the run would name another encoder than it holds."""
    kind = next(iter(SIZES))
    models = [ImageWorldModel(with_encoder(settings(tmp_path, kind))) for _ in range(2)]
    start_from_run(models[0], models[0], "runs/same")
    with torch.no_grad():
        next(models[1].target_encoder.parameters()).add_(1)
    with pytest.raises(UserError, match="runs/other has other weights than timm:"):
        start_from_run(models[0], models[1], "runs/other")


@pytest.mark.parametrize(("kind", "train"), [("tiny_registers", "last-1"), *((kind, "all") for kind in SIZES)])
def test_one_that_is_trained_on_has_a_teacher_of_its_own(tmp_path, kind, train):
    chosen = settings(tmp_path, kind, encoder={"train": train, "layer": 0})
    objective = config.Objective(target_norm="change", variance=0.1, covariance=0.004)
    masks = config.Masks(sampler="random", ratio=0.2, predict="visible")
    chosen = replace(chosen, masks=masks, objective=objective, optim=replace(chosen.optim, lr=1e-3, lr_final=1e-4))
    run = loop.pretrain(chosen)
    line = last_line(run)
    assert line["health_loss"] < 0.9 * line["position_mean_loss"]
    assert line["ema_gap"] > 0
    model = run_folder.load_model(str(run))
    body, teacher = model.encoder.body, model.target_encoder.body
    assert not torch.equal(body.blocks[2].mlp.fc1.weight, teacher.blocks[2].mlp.fc1.weight)
    same = torch.equal(body.blocks[0].mlp.fc1.weight, teacher.blocks[0].mlp.fc1.weight)
    assert same == (train == "last-1")


def test_encoding_anew_in_every_step_learns_too(tmp_path):
    chosen = settings(tmp_path, "tiny_class_token", encoder={"views": 0})
    line = last_line(loop.pretrain(replace(chosen, masks=config.Masks(predict="dropped"))))
    assert line["health_loss"] < line["identity_loss"]


def train_all(runs: list[config.Config]) -> None:
    token_store.PART = 24  # in a process of this test's own, or put back
    for each in runs:
        loop.pretrain(each)


def test_ranks_encode_and_learn_together_what_one_process_does(tmp_path, monkeypatch):
    """Each its share of the files, of which there are three, and its rows of every micro-batch."""
    chosen = settings(tmp_path, "tiny_registers", encoder={"views": 4, "crops": 2})
    optim = replace(chosen.optim, epochs=2, accumulate=2)
    chosen = replace(chosen, optim=optim, run=replace(chosen.run, log_every=2))

    def of(place: str, **speed: Any) -> config.Config:
        out = str(tmp_path / place / "run")
        return replace(chosen, speed=replace(chosen.speed, **speed), run=replace(chosen.run, out=out))

    both = ranks.start(2, tmp_path / "output", train_all, [of("replicated"), of("sharded", shard=True)], patience=5)
    monkeypatch.setattr(token_store, "PART", 24)
    loop.pretrain(of("one"))
    assert both.wait() == [0, 0], both.texts
    curves, files = {}, {}
    for place in ("one", "replicated", "sharded"):
        curves[place] = RunFolder(tmp_path / place / "run").metric_lines()
        files[place] = {path.name: np.load(path) for path in (tmp_path / place / "tokens").iterdir()}
    assert len(files["one"]) == 3
    for way in ("replicated", "sharded"):
        for name in ("loss", "health_loss"):
            assert [line[name] for line in curves[way]] == pytest.approx([line[name] for line in curves["one"]], 1e-4)
        assert files[way].keys() == files["one"].keys()
        for name, tokens in files["one"].items():
            np.testing.assert_allclose(files[way][name], tokens, rtol=2e-3, atol=2e-3)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    chosen = settings(tmp_path, "tiny_registers")
    chosen = replace(chosen, run=replace(chosen.run, save_every=4), optim=replace(chosen.optim, epochs=2))
    whole = loop.pretrain(replace(chosen, run=replace(chosen.run, out=str(tmp_path / "whole"))))
    half = replace(chosen, run=replace(chosen.run, out=str(tmp_path / "half")))
    loop.pretrain(half)
    checkpoints = sorted((tmp_path / "half" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for path in checkpoints[-1].iterdir():
        path.unlink()
    checkpoints[-1].rmdir()
    loop.pretrain(half)
    ours, theirs = (run_folder.load_model(str(each)).state_dict() for each in (whole, tmp_path / "half"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_stopped_run_goes_on_without_the_file_its_encoder_came_from(tmp_path):
    chosen, file = settings(tmp_path, "tiny_registers"), tmp_path / "weights.safetensors"
    save_file(timm.create_model("tiny_registers").state_dict(), file)
    encoder = replace(chosen.encoder, name=f"timm:tiny_registers,weights={file}")
    chosen = replace(chosen, encoder=encoder, optim=replace(chosen.optim, epochs=1))
    before = run_folder.load_model(str(loop.pretrain(chosen)))
    file.unlink()
    after = run_folder.load_model(str(loop.pretrain(replace(chosen, optim=replace(chosen.optim, epochs=2)))))
    ours, theirs = before.target_encoder.state_dict(), after.target_encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert last_line(Path(chosen.run.out))["step"] > 4


def test_pairs_are_of_one_crop_and_their_action_is_known(tmp_path):
    chosen = with_encoder(settings(tmp_path, "tiny_registers", encoder={"crops": 2, "views": 5}))
    chosen = replace(chosen, masks=replace(chosen.masks, whole=0.5))
    source = open_images(chosen.data.source, "train", size=32)
    training, loader = token_training.begin(chosen, source, tmp_path / "run", CPU)
    space, store = training.model.space, loader.store
    seen = set()
    for step in range(6):
        views = loader.pairs(step)
        for row, (image, action) in enumerate(zip(views.indices, views.action, strict=True)):
            place = np.array([int(np.flatnonzero(store.images == image)[0])])
            known = {}
            for crop in range(2):
                for view in range(5):
                    tokens = store.take(place, np.array([crop]), np.array([view]))[0].float()
                    known |= {("source", crop, view): None} if torch.equal(tokens, views.source[row]) else {}
                    known |= {("target", crop, view): None} if torch.equal(tokens, views.target[row]) else {}
            (_, crop, first), (_, other, second) = sorted(known)
            assert crop == other
            assert first != second
            assert second < store.plan.targets
            assert first == 0 or step % 2 == 0
            at = np.array([image])
            between = space.difference(store.plan.parameters(at, crop, first), store.plan.parameters(at, crop, second))
            torch.testing.assert_close(action, between[0])
            seen.add((first, second))
    assert len(seen) > 6


def test_an_epochs_order_is_drawn_once_and_shows_every_image(tmp_path, monkeypatch):
    """Of a million images a draw takes longer than a step."""
    chosen = with_encoder(settings(tmp_path, "tiny_registers"))
    source = open_images(chosen.data.source, "train", size=32)
    _, loader = token_training.begin(chosen, source, tmp_path / "run", CPU)
    draws, real = [], pictures.permutation
    monkeypatch.setattr(pictures, "permutation", lambda *of: draws.append(of) or real(*of))
    pictures.order_of_epoch.cache_clear()
    steps = loader.steps_per_epoch
    rows = np.concatenate([loader.pairs(step).indices for step in range(2 * steps)])
    assert len(draws) == 2
    assert sorted(rows[:64]) == sorted(rows[64:]) == list(range(64))
    assert not np.array_equal(rows[:64], rows[64:])


def test_broken_images_change_neither_the_steps_nor_the_order_of_the_others(tmp_path, capsys):
    kind, folder = "tiny_registers", tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    chosen = settings(tmp_path, kind, encoder={"views": 4}, residual=False)
    chosen = replace(chosen, data=replace(chosen.data, source=str(folder)), optim=replace(chosen.optim, epochs=2))

    def batches() -> tuple[token_training.TokenLoader, list[np.ndarray]]:
        _, loader = token_training.begin(with_encoder(chosen), open_images(str(folder), "train"), tmp_path / "t", CPU)
        return loader, [loader.pairs(step).indices for step in range(2 * loader.steps_per_epoch)]

    whole, before = batches()
    names = [whole_name for place in (5, 17) if (whole_name := open_images(str(folder), "train").path(place))]
    for name in names:
        Path(name).write_bytes(b"broken")
    part, after = batches()
    assert (whole.broken, part.broken) == ([], names)
    assert part.steps_per_epoch == whole.steps_per_epoch
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(new, np.where(np.isin(old, (5, 17)), old + 1, old))
    capsys.readouterr()
    loop.pretrain(chosen)
    assert "2 broken images were skipped." in capsys.readouterr().err


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    base = settings(tmp_path, "tiny_registers")

    def refused(changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            loop.pretrain(replace(base, **changes))

    encoder = base.encoder
    refused({"encoder": replace(encoder, width=64)}, r"has its own encoder\.width \(32\); leave out the 64")
    written = with_encoder(base).encoder
    refused({"encoder": replace(written, patch_size=16)}, r"has its own encoder\.patch_size \(8\); leave out the 16")
    refused({"actions": replace(base.actions, source_from="target")}, r"actions\.source_from crop\); give that")
    refused({"encoder": replace(encoder, train="first-2")}, "give none, last-K")
    refused({"encoder": replace(encoder, views=1)}, r"encoder\.views 1 gives no pair")
    refused({"encoder": replace(encoder, name=""), "recipe": "on-encoder"}, "and none is named; give its name")
    layers = config.Objective(target_layers=2)
    refused({"objective": layers}, r"of one block \(objective\.target_layers 1\)")
    anew = replace(encoder, views=0)
    refused({"objective": layers, "encoder": anew}, r"predictor\.residual changes the tokens")
    refused({"objective": config.Objective(kind="pixels")}, "is of latent targets")
    refused({"init": "timm:test_vit"}, "both bring an encoder")
    trained = replace(encoder, train="all")
    refused({"encoder": trained, "masks": config.Masks(predict="all")}, "so it must see them")
    refused({"encoder": replace(encoder, name="timm:no_such_model")}, "timm has no model")
    refused({"encoder": replace(encoder, layer=4)}, "no layer 4 in an encoder of 3 blocks")
    refused({"data": replace(base.data, image_size=30)}, "patches of 8 px")


def test_what_does_not_fit_is_said_before_anything_is_encoded(tmp_path, monkeypatch):
    """That takes minutes; the weights of `init`, too, are looked at before."""
    base = settings(tmp_path, "tiny_registers")
    first = loop.pretrain(replace(base, optim=replace(base.optim, epochs=1)))
    monkeypatch.setattr(token_store, "build", lambda *_: pytest.fail("encoded"))
    other = replace(base, run=replace(base.run, out=str(tmp_path / "other")))
    with pytest.raises(UserError, match="A batch of 100 is larger than"):
        loop.pretrain(replace(other, optim=replace(base.optim, batch_size=100)))
    with pytest.raises(UserError, match="do not fit these settings"):
        loop.pretrain(replace(other, init=str(first), predictor=replace(base.predictor, width=64)))
