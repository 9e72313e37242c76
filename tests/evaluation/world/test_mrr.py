"""MRR against brute force, an oracle and constants."""

import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import bank_ranges
from iwm.evaluation.world import mrr
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import algebra


@pytest.fixture
def model() -> ImageWorldModel:
    torch.manual_seed(0)
    return ImageWorldModel(tiny()).eval()


class OraclePredict:
    """Stands in for model.predict: renders the change the action asks for and encodes it."""

    def __init__(self, model: ImageWorldModel, images: torch.Tensor) -> None:
        self.model, self.images, self.calls = model, images, 0

    def __call__(self, tokens: Tokens, action: torch.Tensor) -> Tokens:
        known = self.model.encode(self.images).values
        which = (known - tokens.values[:1]).square().sum((1, 2)).argmin()
        action = action.expand(len(tokens.values), -1)
        pixels = self.images[which].float()[None].expand(len(action), -1, -1, -1) / 255
        return self.model.target(self.model.space.apply(pixels, self.model.space.reach(action)))


@torch.no_grad()
def test_an_oracle_scores_one(model, images, monkeypatch):
    monkeypatch.setattr(model, "predict", OraclePredict(model, images))
    result = mrr.measure(model, images[:3], bank=32)
    assert result["mrr"] == pytest.approx(1)
    assert result["hits_at_1"] == pytest.approx(1)
    assert result["inferred_action_error"] == pytest.approx(0, abs=1e-6)
    assert result["action_sensitivity"] == pytest.approx(1, rel=1e-3)
    assert result["mrr_shuffled"] < 3 * result["mrr_chance"]
    assert result["mrr_null"] == pytest.approx(result["mrr_chance"], rel=1e-6)


@torch.no_grad()
def test_a_constant_predictor_is_at_chance(model, images, monkeypatch):
    monkeypatch.setattr(
        model, "predict", lambda tokens, action: model.target(images[:1].expand(len(tokens.values), -1, -1, -1))
    )
    result = mrr.measure(model, images[:3], bank=32)
    assert result["mrr"] == pytest.approx(algebra.chance(32), rel=1e-6)
    assert result["action_sensitivity"] == 0
    assert result["always_zero_action_error"] > 0.1


@torch.no_grad()
def test_a_collapsed_target_space_ties_and_falls_below_chance(model, images):
    model.target_encoder.norm.weight.zero_()
    result = mrr.measure(model, images[:2], bank=32)
    assert result["mrr"] == pytest.approx(1 / 16.5, rel=1e-6)
    assert result["mrr"] < result["mrr_chance"]


@torch.no_grad()
def test_the_bank_is_the_same_for_every_seeded_call(model, images):
    one, two = mrr.measure(model, images[:2], 16), mrr.measure(model, images[:2], 16)
    assert one == two
    assert mrr.measure(model, images[:2], 16, seed=1) != one


def test_only_another_range_is_another_bank():
    def ranges(**changes):
        return bank_ranges(ActionSpace.from_config(config.Actions(**changes), 32))

    assert ranges(jitter_probability=1.0) == ranges(level="jitter") == ranges()
    assert ranges(level="strong") != ranges()
