"""The frozen-random twin is trained as the run was, in as many stages."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pictures_file, tiny

from iwm import config, run_folder
from iwm.actions import action_sets
from iwm.actions.transformation import Transformation
from iwm.evaluation.world import mrr
from iwm.evaluation.world.twin import train_twin
from iwm.model import weights
from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.training import loop, step
from iwm.verbs.world import World

SPEED = config.Speed(device="cpu", workers=0)


@pytest.mark.parametrize("part", ["", "/model", f"/model/{weights.TENSORS}"])
def test_the_twin_of_a_run_that_went_on_goes_on_from_the_first_ones_twin(tmp_path, monkeypatch, part):
    """Whatever way the first was named in, and wherever the twin is asked for."""
    source = str(pictures_file(tmp_path / "pictures.npz", labelled=True))
    base = replace(tiny(), data=replace(tiny().data, source=source), optim=replace(tiny().optim, epochs=1))
    first, second = tmp_path / "first", tmp_path / "second"
    loop.pretrain(replace(base, run=config.Run(out=str(first))))
    monkeypatch.chdir(tmp_path)
    loop.pretrain(replace(base, init=f"first{part}", run=config.Run(out=str(second), seed=1)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = mrr.world(World(run=str(second), data=source, images=2, bank=8, frozen_random_twin=True))
    assert 0 < found["frozen_random_twin_mrr"] <= 1
    twins = [run_folder.load_model(str(RunFolder(run).twin.path)) for run in (first, second)]
    one, two = (twin.encoder.state_dict() for twin in twins)
    assert all(torch.equal(one[name], two[name]) for name in one), "one and the same random encoder"
    assert RunFolder(second).twin.settings().init == str(RunFolder(first).twin.path)
    predictors = [torch.cat([p.flatten() for p in twin.predictor.parameters()]) for twin in twins]
    drawn = step.build(twins[0].settings, torch.device("cpu")).predictor
    start = torch.cat([p.flatten() for p in drawn.parameters()])
    assert (predictors[1] - predictors[0]).norm() < (predictors[1] - start).norm(), "it went on from the first twin"


def test_the_twin_of_a_run_with_an_invariant_last_block(tmp_path, monkeypatch):
    """Its encoder learns nothing, so that term falls away; the block that is predicted stays."""
    source = str(pictures_file(tmp_path / "pictures.npz", labelled=True))
    dial = config.Objective(target_norm="batch", invariance_weight=1.0, projector_dim=8)
    settings = tiny(objective=dial, encoder=replace(tiny().encoder, layer=1), optim=replace(tiny().optim, epochs=1))
    run = tmp_path / "run"
    loop.pretrain(replace(settings, data=replace(settings.data, source=source), run=config.Run(out=str(run))))
    measured = []
    original = mrr.measure_each
    monkeypatch.setattr(mrr, "measure_each", lambda *given: measured.append(original(*given)) or measured[-1])
    result = mrr.world(World(run=str(run), data=source, images=2, bank=8, frozen_random_twin=True))
    (a, b), (c, d) = (each["common"].tolist() for _, each in measured)
    assert result["mrr_common"] == pytest.approx((a + b) / 2)
    assert result["mrr_common_difference_standard_error"] == pytest.approx(abs((a - c) - (b - d)) / 2), "paired"
    assert result["frozen_random_twin"]["mrr_common"] == result["frozen_random_twin_mrr_common"]
    assert 0 < result["mrr_common"] <= 1
    assert {"target_pixel_r2", "target_position_share", "photometric_share"} <= result.keys()
    assert run_folder.load_model(str(RunFolder(run).twin.path)).target_encoder.layer == 1


def edit_weights(run: Path, **changes: object) -> None:
    """Write other content into the `config.json` of a run's weights; None leaves an entry out."""
    path = RunFolder(run).model / weights.CONFIG
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("init", ["demo", "timm:vit_tiny_patch16_224", "hf-hub:user/name", "gone", "exported"])
def test_a_run_that_began_with_what_has_no_twin_is_refused(trained, tmp_path, monkeypatch, init):
    monkeypatch.setattr(loop, "pretrain", lambda *_: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RunFolder(trained).model, tmp_path / "exported")
    config.save(replace(RunFolder(trained).settings(), init=init), RunFolder(trained).config)
    with pytest.raises(UserError, match=rf"{trained} began with the weights of {init}, .*leave out --frozen-random"):
        train_twin(str(trained), SPEED)


def test_nothing_is_trained_before_all_is_known_to_fit(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "pretrain", lambda *_: pytest.fail("trained"))
    second = shutil.copytree(trained, tmp_path / "second")
    shutil.rmtree(RunFolder(second).model)
    config.save(replace(RunFolder(trained).settings(), init=str(trained)), RunFolder(second).config)
    with pytest.raises(UserError, match="second has no finished weights yet"):
        train_twin(str(second), SPEED)


def test_the_twin_is_trained_as_long_as_the_weights_that_are_measured(trained):
    """The run was asked for more and stopped before."""
    folder = RunFolder(trained)
    settings = folder.settings()
    config.save(replace(settings, optim=replace(settings.optim, epochs=20)), folder.config)
    twin = train_twin(str(trained), SPEED)
    assert twin.metric_lines()[-1]["step"] == 8
    assert twin.settings().optim == settings.optim


def test_a_twin_that_was_trained_longer_than_the_run_is_named(trained):
    twin = train_twin(str(trained), SPEED)
    settings = weights.read_meta(RunFolder(trained).model)["settings"]
    edit_weights(trained, settings=settings | {"optim": settings["optim"] | {"epochs": 1}})
    with pytest.raises(
        UserError, match=rf"twin in {twin.path} is another one .* delete that folder.* past the 4 steps"
    ):
        train_twin(str(trained), SPEED)


def test_a_twin_that_would_learn_other_actions_is_refused(trained, monkeypatch):
    shift = Transformation(
        name="shift", apply=lambda x, _: x, graded=True, both=True, low=-0.3, high=0.3, neutral=0.0, probability=0.7
    )
    monkeypatch.setattr(action_sets, "REGISTERED", {"shift": shift})
    with pytest.raises(UserError, match=r"trained without the transformation 'shift'.*leave out --frozen-random-twin"):
        train_twin(str(trained), SPEED)
    assert not RunFolder(trained).twin.path.exists()


@pytest.mark.parametrize("noted", ["weights", "checkpoint"])
def test_a_source_with_other_images_is_refused(trained, tmp_path, noted):
    """Older weights do not note how many there were, the checkpoints do."""
    if noted == "checkpoint":
        edit_weights(trained, images=None)
    else:
        shutil.rmtree(RunFolder(trained).checkpoints)
    pictures_file(tmp_path / "pictures.npz", count=80)
    with pytest.raises(UserError, match=r"trained on 64 images, 'pictures' now holds 80, .* same pictures back"):
        train_twin(str(trained), SPEED)
    assert not RunFolder(trained).twin.path.exists()


def test_a_run_that_does_not_say_how_many_images_it_had_is_refused(trained):
    edit_weights(trained, images=None)
    shutil.rmtree(RunFolder(trained).checkpoints)
    with pytest.raises(UserError, match=r"on how many images it was trained.* bring its checkpoints back"):
        train_twin(str(trained), SPEED)
