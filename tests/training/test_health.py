"""The doctor calls planted sick runs ill, and a fair one healthy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny

from iwm import config
from iwm.actions.views import Views, make_views
from iwm.model import target_measures
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


def views_of(model: ImageWorldModel, count: int = 64) -> Views:
    """The views that `examined` measures on."""
    generator, s = torch.Generator().manual_seed(0), model.settings
    images = torch.randint(0, 256, (count, 3, *[s.data.image_size] * 2), dtype=torch.uint8, generator=generator)
    return make_views(images, model.space, s.actions, 0, -1, np.arange(count), "cpu")


def examined(model: ImageWorldModel, count: int = 64) -> dict[str, Any]:
    views = views_of(model, count)
    model.train()
    model.calibrate(views)
    model.target_norm.fold()
    line = measure(model, views, sample_masks(model.settings.masks, model.grid, 0, -1, np.arange(count), "cpu"))
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
        ({"health_loss": 0.89}, "give it more steps"),
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


# ---- planted models, of which the right value is known -------------------------------------------------------------


class Follower(torch.nn.Module):
    """A predictor that is off by a constant, and says `slope` of the true change and an error orthogonal to it of
    `noise` times its length."""

    def __init__(self, model: ImageWorldModel, slope: float, noise: float) -> None:
        super().__init__()
        self.conditioning = model.predictor.conditioning
        generator = torch.Generator().manual_seed(1)

        def answer(action: torch.Tensor) -> torch.Tensor:
            clean = views_of(model).target
            start = model.target(clean).values
            change = model.target(model.space.apply(clean, model.space.reach(action))).values - start
            error = torch.randn(change.shape, generator=generator)
            error = error - (error * change).sum() / change.square().sum().clamp_min(1e-12) * change
            return start + 3 + slope * change + noise * change.norm() / error.norm() * error

        self.answer = answer

    def forward(self, tokens: Any, action: Any, context: Any = None, queries: Any = None, grid: Any = None) -> Any:
        if queries is not None:  # as in training; of that nothing is asserted here
            return tokens.new_zeros(*queries.shape, tokens.shape[2])
        return self.answer(action)


@torch.no_grad()
@pytest.mark.parametrize(("slope", "noise"), [(1.0, 0.0), (0.5, 0.375), (-0.3, 0.4)])
def test_slope_and_correlation_of_a_planted_predictor(slope, noise):
    model = fresh()
    model.predictor = Follower(model, slope, noise)  # pyright: ignore[reportAttributeAccessIssue]
    line = examined(model)
    assert line["action_slope"] == pytest.approx(slope, rel=1e-3)
    assert line["action_correlation"] == pytest.approx(slope / math.hypot(slope, noise), rel=1e-3)
    assert line["action_sensitivity"] == pytest.approx(slope**2 + noise**2, rel=1e-3)


@pytest.mark.parametrize("rank", [2, 8])
def test_targets_of_known_rank(rank, monkeypatch):
    """Images lie along `rank` directions, as many along each; what their patches differ in falls out of the mean."""

    def raw_target(_: ImageWorldModel, images: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(images))
        tokens = torch.zeros(len(images), 16, 32)
        tokens[rows, :, rows % rank] = (1.0 - 2 * (rows // rank % 2))[:, None]
        return tokens + 3 * (1 - 2 * (torch.arange(16) % 2))[:, None]

    model = fresh()
    monkeypatch.setattr(model.objective, "raw_target", raw_target)
    assert examined(model)["target_rankme"] == pytest.approx(rank, rel=1e-3)


def test_targets_of_known_parts(monkeypatch):
    """A health check measures the targets that are predicted: .3 position, .4 own pixels, .3 neither."""
    generator = torch.Generator().manual_seed(2)
    mixing, means = torch.randn(48, 32, generator=generator), torch.randn(16, 32, generator=generator)
    rest = torch.randn(256, 16, 32, generator=generator)

    def raw_target(model: ImageWorldModel, images: torch.Tensor) -> torch.Tensor:
        linear = target_measures.own_pixels(model.encoder.normalise(images), 4) @ mixing
        parts = [(part - part.mean((0, 1))) / part.std((0, 1)) for part in (means.expand(256, -1, -1), linear, rest)]
        return 0.3**0.5 * parts[0] + 0.4**0.5 * parts[1] + 0.3**0.5 * parts[2]

    model = fresh()
    monkeypatch.setattr(model.objective, "raw_target", raw_target)
    line = examined(model, 256)
    assert line["target_position_share"] == pytest.approx(0.3, abs=0.02)
    assert line["target_pixel_r2"] == pytest.approx(0.7, abs=0.04)


class Blur(torch.nn.Module):
    """A block that adds noise, so that of the variance of what goes in, `before` of it signal, `after` is signal."""

    def __init__(self, before: float, after: float) -> None:
        super().__init__()
        self.power, self.seed = before / after - 1, int(100 * after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed))
        return x + (self.power * x.var((0, 1)).mean()).sqrt() * noise


@torch.no_grad()
def test_blocks_of_known_r2_from_their_own_pixels():
    """Patch embeddings are a linear map of the pixels; each block then drowns a known part of them."""
    settings = tiny(encoder=replace(tiny().encoder, depth=3), actions=config.Actions(jitter_probability=0.0))
    torch.manual_seed(0)
    model, shares = ImageWorldModel(settings), (0.9, 0.6, 0.3)
    for encoder in (model.encoder, model.target_encoder):
        blocks = [Blur(before, after) for before, after in zip((1.0, *shares), shares, strict=False)]
        encoder.blocks = torch.nn.Sequential(*blocks)
        encoder.pos_embed.zero_()
    assert examined(model, 256)["target_pixel_r2_blocks"] == pytest.approx(shares, abs=0.05)


@torch.no_grad()
def test_the_photometric_share_of_the_last_block_is_the_last_blocks():
    dial = config.Objective(target_norm="batch", invariance_weight=1.0, projector_dim=8)
    torch.manual_seed(0)
    model = ImageWorldModel(tiny(objective=dial, encoder=replace(tiny().encoder, depth=3, layer=1)))
    encoder = model.target_encoder
    for block in encoder.stack[1:]:
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.5)  # pyright: ignore
    line, views = examined(model), views_of(model)

    def share_of(number: int) -> float:
        """By the formula, of the tokens behind that block."""
        ends = []
        for images in (views.source, views.target):
            x = encoder.embed(images)
            for block in encoder.stack[:number]:
                x = block(x)
            ends.append(F.layer_norm(x.double(), x.shape[-1:]))
        source, target = ends
        spread = (target - target.mean(0)).square().sum() / (len(target) - 1)
        return float((source - target).square().sum() / len(target) / spread)

    shares = [share_of(number) for number in (1, 2, 3)]
    assert line["photometric_share_last"] == pytest.approx(shares[2], rel=1e-3)
    assert all(abs(share / shares[2] - 1) > 0.05 for share in shares[:2]), "the others have another"
