"""Rulers beside the MRR, on planted predictors for which the right value is known."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny

from iwm import config
from iwm.evaluation.world import mrr
from iwm.evaluation.world.calibration import SIDE, colour_map, colours_of
from iwm.model.world_model import ImageWorldModel, Tokens


@pytest.fixture
def model() -> ImageWorldModel:
    """Its targets are the pixels of patches of 4 x 4, scaled channel by channel, so they say every colour exactly."""
    torch.manual_seed(0)
    settings = tiny(objective=config.Objective(kind="pixels", target_norm="batch"))
    return ImageWorldModel(settings).eval()


def plant(model: ImageWorldModel, images: torch.Tensor, slope: float, noise: float = 0.0) -> Any:
    """A predictor that knows the truth, says `slope` of its change, and adds noise orthogonal to it on average."""
    generator, known = torch.Generator().manual_seed(3), model.encode(images).values

    def predict(tokens: Tokens, action: torch.Tensor) -> Tokens:
        which = (known - tokens.values[:1]).square().sum((1, 2)).argmin()
        action = action.expand(len(tokens.values), -1)
        clean = images[which].float()[None].expand(len(action), -1, -1, -1) / 255
        start = model.target(clean).values
        change = model.target(model.space.apply(clean, model.space.reach(action))).values - start
        moves = (action.abs().sum(1) > 0).float()[:, None, None]
        drift = torch.randn(change.shape, generator=generator) * noise * change.square().mean().sqrt() * moves
        return Tokens(start + slope * change + drift, tokens.grid)

    return predict


def grey_in_part(count: int) -> torch.Tensor:
    """Pictures whose contrast is small, so that no change leaves the range of pixels."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(110, 140, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("slope", [1.0, 0.5, 0.2])
def test_slope_and_calibration_of_a_predictor_that_shrinks(model, monkeypatch, slope):
    pictures = grey_in_part(24)
    monkeypatch.setattr(model, "predict", plant(model, pictures, slope))
    result = mrr.measure(model, pictures[:4], bank=16, lessons=pictures[4:])
    assert result["slope"] == pytest.approx(slope, rel=1e-3)
    assert result["action_correlation"] == pytest.approx(1, rel=1e-3)
    assert result["calibration_slope"] == pytest.approx(slope, rel=1e-3)
    assert result["action_sensitivity"] == pytest.approx(slope**2, rel=1e-3)
    assert result["mrr_calibrated"] == pytest.approx(1, abs=1e-6)
    if slope < 0.5:
        assert result["mrr"] < 0.9


@torch.no_grad()
def test_noise_lowers_the_correlation_and_not_the_slope(model, monkeypatch):
    pictures = grey_in_part(8)
    monkeypatch.setattr(model, "predict", plant(model, pictures, 0.6, noise=0.8))
    result = mrr.measure(model, pictures[:4], bank=32)
    assert result["slope"] == pytest.approx(0.6, abs=0.03)
    assert result["action_correlation"] == pytest.approx(0.6, abs=0.03)  # .6 / sqrt(.6^2 + .8^2)
    assert "mrr_calibrated" not in result


@torch.no_grad()
def test_a_predictor_that_ignores_the_action_is_not_stretched(model, monkeypatch):
    pictures = grey_in_part(12)
    monkeypatch.setattr(model, "predict", plant(model, pictures, 0.0))
    result = mrr.measure(model, pictures[:3], bank=16, lessons=pictures[3:])
    assert result["mrr_calibrated"] == result["mrr"] == pytest.approx(result["mrr_chance"], rel=1e-6)
    assert result["mrr_common"] == pytest.approx(result["mrr_chance"], rel=1e-6)
    assert result["action_correlation"] == 0


@torch.no_grad()
def test_the_common_space_is_the_pictures_colours(model, monkeypatch):
    """Targets that are pixels say them exactly; an oracle then ranks first, and so do the true targets."""
    pictures = grey_in_part(120)
    colours = colour_map(model, pictures[:100], 0)
    images = pictures[100:].float() / 255
    target = model.target(images)
    assert colours.cells == 2
    torch.testing.assert_close(colours(target.values, target.grid).float(), colours_of(images), atol=2e-4, rtol=0)
    monkeypatch.setattr(model, "predict", plant(model, pictures, 1.0))
    result = mrr.measure(model, pictures[100:103], bank=32, lessons=pictures[:100])
    assert result["mrr_common"] == pytest.approx(1)
    assert result["mrr_common_limit"] == pytest.approx(1)


@torch.no_grad()
def test_the_common_space_is_the_same_for_targets_in_another_basis(model, images, monkeypatch):
    """Scaled, turned and shifted targets say the same colours."""
    values, real = model.target(images).values, model.target
    before = colour_map(model, images, 0)(values, model.grid)
    turn = torch.linalg.qr(torch.randn(values.shape[2], values.shape[2], generator=torch.Generator().manual_seed(1)))[0]
    monkeypatch.setattr(model, "target", lambda pixels: Tokens(5 * real(pixels).values @ turn + 3, model.grid))
    after = colour_map(model, images, 0)(model.target(images).values, model.grid)
    torch.testing.assert_close(after, before, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("size", "patch"), [(16, 4), (32, 4), (56, 8)])
def test_colours_of_any_grid(size, patch):
    images = torch.rand(2, 3, size, size)
    assert colours_of(images).shape == (2, 3 * SIDE**2)
    if size % SIDE == 0:
        torch.testing.assert_close(colours_of(images), F.avg_pool2d(images, size // SIDE).flatten(1))
