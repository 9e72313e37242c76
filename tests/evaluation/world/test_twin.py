"""The frozen-random twin is trained as the run was, in as many stages."""

from dataclasses import replace

import pytest
import torch
from conftest import pictures_file, tiny

from iwm import config, run_folder
from iwm.evaluation.world import mrr
from iwm.run_folder import RunFolder
from iwm.training import loop, step
from iwm.verbs.world import World


def test_the_twin_of_a_run_that_went_on_goes_on_from_the_first_ones_twin(tmp_path):
    source = str(pictures_file(tmp_path / "pictures.npz", labelled=True))
    base = replace(tiny(), data=replace(tiny().data, source=source), optim=replace(tiny().optim, epochs=1))
    first, second = tmp_path / "first", tmp_path / "second"
    loop.pretrain(replace(base, run=config.Run(out=str(first))))
    loop.pretrain(replace(base, init=str(first), run=config.Run(out=str(second), seed=1)))
    found = mrr.world(World(run=str(second), data=source, images=2, bank=8, frozen_random_twin=True))
    assert 0 < found["frozen_random_twin_mrr"] <= 1
    twins = [run_folder.load_model(str(RunFolder(run).twin.path)) for run in (first, second)]
    one, two = (twin.encoder.state_dict() for twin in twins)
    assert all(torch.equal(one[name], two[name]) for name in one), "one and the same random encoder"
    assert RunFolder(second).twin.settings().init.startswith(str(first))
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
