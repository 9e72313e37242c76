"""The doctor calls planted sick runs ill, and a fair one healthy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.actions.views import make_views
from iwm.model.architecture import described
from iwm.model.masks import sample_masks
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError
from iwm.training.health import judge, measure, rankme, target_variance


def test_rankme_counts_directions():
    orthogonal = torch.linalg.qr(torch.randn(64, 8))[0]
    assert rankme(orthogonal) == pytest.approx(8, rel=1e-4)
    assert rankme(torch.ones(64, 8)) == pytest.approx(1, rel=1e-4)
    singular = torch.tensor([3.0, 1.0])
    shares = singular / 4
    wanted = math.exp(-(shares * shares.log()).sum())
    assert rankme(torch.diag(singular)) == pytest.approx(wanted, rel=1e-5)


def test_target_variance_is_the_share_between_images():
    position, image = torch.randn(1, 50, 4), torch.randn(2000, 1, 4)
    assert target_variance(position.expand(100, -1, -1)) == pytest.approx(0, abs=1e-9)
    assert target_variance(image.expand(-1, 50, -1)) == pytest.approx(1)
    mixed = target_variance(image + position)
    assert mixed == pytest.approx(1 / (1 + position.var(1, correction=0).mean().item()), abs=0.1)
    assert target_variance(torch.zeros(10, 3, 2)) == 0


def examined(model: ImageWorldModel, count: int = 64) -> dict[str, Any]:
    generator, s = torch.Generator().manual_seed(0), model.settings
    images = torch.randint(0, 256, (count, 3, *[s.data.image_size] * 2), dtype=torch.uint8, generator=generator)
    indices = np.arange(count)
    views = make_views(images, model.space, s.actions, 0, -1, indices, "cpu")
    model.train()
    model.calibrate(views)
    model.target_norm.fold()
    line = measure(model, views, sample_masks(s.masks, model.grid, 0, -1, indices, "cpu"))
    assert model.training
    return {"loss": line["health_loss"], **line}


def fresh() -> ImageWorldModel:
    torch.manual_seed(0)
    model = ImageWorldModel(tiny())
    model.predictor.open_gates()
    return model


def final_norm(model: ImageWorldModel) -> torch.nn.LayerNorm:
    norm = model.target_encoder.norm
    assert isinstance(norm, torch.nn.LayerNorm)
    return norm


def test_an_untrained_run_is_ill_for_its_loss():
    verdict = judge(examined(fresh()))
    assert not verdict.healthy
    assert any("knowing the position only" in finding for finding in verdict.findings)


@torch.no_grad()
def test_constant_targets_are_ill():
    model = fresh()
    torch.nn.init.zeros_(final_norm(model).weight)
    torch.nn.init.ones_(final_norm(model).bias)
    line = examined(model)
    assert line["target_variance"] == 0
    assert not judge(line).healthy


@torch.no_grad()
def test_position_only_targets_are_ill():
    model = fresh()
    model.target_encoder.patch_embed.proj.weight.zero_()
    line = examined(model)
    assert line["target_variance"] < 1e-6
    assert any("hardly depend on the image" in finding for finding in judge(line).findings)


def good_line(**changes: float | None) -> dict[str, float | None]:
    line = {
        "loss": 0.3,
        "health_loss": 0.3,
        "position_mean_loss": 0.9,
        "identity_loss": 0.4,
        "rankme": 30.0,
        "target_variance": 0.7,
        "action_sensitivity": 0.6,
        "ema_gap": 0.1,
    }
    return {**line, **changes}


def test_a_fair_run_is_healthy():
    verdict = judge(good_line())
    assert verdict.healthy
    assert verdict.word == "healthy"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"action_sensitivity": 0.0}, "ignores the action"),
        ({"loss": float("nan")}, "diverged"),
        ({"health_loss": float("inf")}, "diverged"),
        ({"position_mean_loss": float("nan")}, "diverged"),
        ({"action_sensitivity": float("nan")}, "diverged"),
        ({"action_sensitivity": None}, "diverged"),
        ({"identity_loss": float("nan")}, "diverged"),
        ({"rankme": 1.3}, "collapsed"),
        ({"rankme": 4.8}, "raise objective.variance"),
        ({"target_variance": 0.005}, "collapsing"),
        ({"health_loss": 0.89}, "position only"),
    ],
)
def test_each_illness_is_named(change, word):
    verdict = judge(good_line(**change))
    assert verdict.word == "ill"
    assert word in " ".join(verdict.findings)


@torch.no_grad()
def test_an_action_blind_predictor_measures_zero_sensitivity():
    model = fresh()  # open gates, but a zero modulation: it does not hear the action
    line = examined(model)
    assert line["action_sensitivity"] == 0
    torch.nn.init.normal_(model.predictor.blocks[0].modulation.weight)  # pyright: ignore
    assert examined(model)["action_sensitivity"] > 0


@torch.no_grad()
def test_a_diverged_model_is_ill():
    model = fresh()
    torch.nn.init.constant_(final_norm(model).weight, math.nan)
    assert "diverged" in judge(examined(model)).findings[0]


@pytest.mark.parametrize("change", [{"rankme": "many"}, {"loss": True}, {"health_loss": [1]}, {"ema_gap": "x"}, {}])
def test_a_line_without_its_numbers_is_no_verdict(change):
    line = {"step": 7, "loss": 0.3, "health_loss": 0.3, "position_mean_loss": 0.9, "rankme": 30.0}
    line |= {"target_variance": 0.7, "action_sensitivity": 0.6}
    assert judge(line).healthy
    if not change:
        del line["rankme"]
    with pytest.raises(UserError, match=r"metrics of step 7 hold no number"):
        judge(line | change)


def test_a_line_says_what_the_targets_are_made_of():
    line = examined(fresh())
    assert line["photometric_share"] == pytest.approx(line["identity_loss"] / line["position_mean_loss"])
    assert -1 <= line["action_correlation"] <= 1
    assert line["action_slope"] == pytest.approx(
        line["action_correlation"] * line["action_sensitivity"] ** 0.5, rel=1e-4
    )
    assert 0 <= line["target_position_share"] <= 1
    assert len(line["target_pixel_r2_blocks"]) == 2
    assert line["target_pixel_r2"] > 0.5, "fresh blocks hardly do more than project the patch"
    assert 1 <= line["target_rankme"] <= 32
    assert "photometric_share_last" not in line
    torch.manual_seed(0)
    dial = config.Objective(target_norm="batch", invariance_weight=1.0, projector_dim=8)
    line = examined(ImageWorldModel(tiny(objective=dial, encoder=replace(tiny().encoder, layer=1))))
    assert len(line["target_pixel_r2_blocks"]) == 2, "those behind the predicted one too"
    assert 0 < line["photometric_share_last"] < 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_pixel_r2": 0.9}, "by a linear map (R2 0.90)"),
        ({"target_position_share": 0.7}, "70% of the targets' variance is their position"),
        ({"photometric_share": 0.01}, "hardly change with the colours (photometric share 0.010"),
    ],
)
def test_a_telling_value_is_told_and_makes_nobody_ill(change, said):
    usual = {"target_pixel_r2": 0.6, "target_position_share": 0.3, "photometric_share": 0.3}
    healthy = judge(good_line(**usual))
    assert healthy.healthy
    assert judge(good_line()).findings == healthy.findings, "older lines hold no such numbers"
    verdict = judge(good_line(**usual) | change)
    assert verdict.healthy
    assert [sentence for sentence in verdict.findings if said in sentence]


@pytest.mark.parametrize(("name", "layer"), [("test_convnext", 0), ("test_resnet", 3)])
def test_blocks_that_are_not_alike_are_left_out(name, layer):
    """Stages of maps grow coarser; a ResNet has no list of blocks at all."""
    named = config.Encoder(name=f"timm:{name},weights=random", train="none", layer=layer)
    settings = tiny(encoder=described(named, name, None), data=config.Data(image_size=64))
    line = examined(ImageWorldModel(settings), count=20)
    assert len(line["target_pixel_r2_blocks"]) == 1
