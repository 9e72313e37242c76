"""Errors of inferred actions: none for an oracle, and the baselines are what they say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from oracle import REVERSIBLE, Oracle, muted
from PIL import Image

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.pixel_search import reach_with_flags
from iwm.evaluation.tasks.linear import choose_ridge
from iwm.evaluation.world import infer
from iwm.model.world_model import Tokens
from iwm.runtime.errors import UserError
from iwm.verbs.infer import Infer

SPEED = config.Speed(precision="fp32")


def small(count: int) -> torch.Tensor:
    return muted(count)[..., ::4, ::4].contiguous()


def oracle() -> Oracle:
    return Oracle(space=REVERSIBLE, size=8)


def test_channel_statistics_are_what_they_say() -> None:
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    found = infer.channel_statistics(images).numpy()
    flat = images.flatten(2).numpy()
    np.testing.assert_allclose(found[:, :3], flat.mean(2), atol=1e-6)
    np.testing.assert_allclose(found[:, 6:9], flat.std(2), atol=1e-6)
    np.testing.assert_allclose(found[:, 12:15], np.quantile(flat, 0.05, axis=2), atol=1e-6)
    logs = np.log(np.concatenate([flat.mean(2), (flat.max(1) - flat.min(1)).mean(1, keepdims=True)], axis=1))
    np.testing.assert_allclose(found[:, 30:34], logs, atol=1e-5)
    covariance = [np.cov(image, bias=True) for image in flat]
    np.testing.assert_allclose(found[:, -3:], [[c[0, 1], c[0, 2], c[1, 2]] for c in covariance], atol=1e-6)


def test_an_oracle_makes_no_error() -> None:
    found = infer.measure(oracle(), small(60), small(8))
    assert found["inferred_action_error"] < 0.01
    assert found["search"]["components"].keys() == {"light", "warmth"}
    assert found["always_zero"]["error"] > 0.15
    assert found["pixel_statistics"]["error"] < 0.01, "here the change is linear in the channels' means"
    assert found["residual"] < 1e-3 * found["null_residual"]
    assert found["true_residual"] == pytest.approx(0, abs=1e-8)


class Deaf(Oracle):
    """Predicts that nothing changes."""

    def predict(self, tokens: Tokens, action: torch.Tensor) -> Tokens:
        return tokens


def test_the_search_among_pictures_stands_beside_the_models_and_needs_no_model() -> None:
    found = infer.measure(Deaf(space=REVERSIBLE, size=8), small(60), small(8))
    assert found["search"]["error"] == found["always_zero"]["error"] > 0.15
    assert found["pixel_search"]["error"] < 0.003
    assert set(infer.answers_of(found)) == set(infer.ANSWERS.values()) - {
        "the same, tokens averaged",
        "the same, by histograms",
    }


def test_two_crops_have_no_pixel_in_common_and_averages_beside_them() -> None:
    """Mirror images: every pixel is elsewhere, and the same values are there."""
    left = muted(60)[..., ::4, ::4].contiguous()
    images = torch.cat([torch.cat([left, left.flip(3)], 3), torch.cat([left.flip(2), left.flip((2, 3))], 3)], 2)
    space = REVERSIBLE
    pairs = infer.change_pairs(space, images, 8, 0, torch.arange(60))
    back = space.apply(left.flip((2, 3)).float() / 255, reach_with_flags(space, pairs.action))
    torch.testing.assert_close(pairs.source, left.float() / 255)
    torch.testing.assert_close(pairs.target, back)
    found = infer.measure(oracle(), images, images[:8], shift=8)
    assert set(infer.answers_of(found)) == set(infer.ANSWERS.values())
    for averaged in ("pooled_search", "histogram_search", "pixel_statistics", "encoder_features"):
        assert found[averaged]["error"] < 0.01, averaged


def test_a_regression_of_pixel_statistics_reads_a_factor() -> None:
    """Brightness alone, clipping nothing: images of all kinds of light, so that no difference of means tells."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(600, 1, 1, 1, generator=generator) * 0.5 + 0.05
    images = light * (0.7 + 0.6 * torch.rand(600, 3, 4, 4, generator=generator))
    factor = torch.rand(600, generator=generator) * 0.8 + 0.6
    changed = images * factor[:, None, None, None]
    features = infer.features_of_pair(infer.channel_statistics(images), infer.channel_statistics(changed))
    action = ((factor - 1) / 0.8)[:, None]

    def error(features: torch.Tensor) -> float:
        fitted = choose_ridge(features[:500], action[:500], 0)
        return float((fitted.logits(features[500:]) - action[500:]).abs().mean())

    plain = torch.cat([features[:, :30], features[:, 43:73]], dim=1)
    assert error(features) < 0.04 < 0.5 * error(plain)


def test_a_feature_regression_sees_what_the_search_sees() -> None:
    """A model whose encoder sees nothing and whose target space holds everything."""

    class Blind(Oracle):
        def encode(self, images: torch.Tensor, *, student: bool = False) -> Tokens:
            return Tokens(torch.zeros(len(images), 64, 3), self.grid)

        def target(self, images: torch.Tensor) -> Tokens:
            return super().encode(images)

        def predict(self, tokens: Tokens, action: torch.Tensor) -> Tokens:
            return Tokens(tokens.values + action.sum(), tokens.grid)

    found = infer.measure(Blind(space=REVERSIBLE, size=8), small(60), small(8))
    assert found["encoder_features"]["error"] < 0.01


def test_errors_count_in_the_references_range() -> None:
    """A range twice as wide must not halve the error of the very same answers."""

    def always_zero(level: Literal["destructive", "strong"]) -> float:
        space = ActionSpace.from_config(config.Actions(level=level), 8)
        return infer.measure(Deaf(space=space, size=8), small(20), small(4))["always_zero"]["error"]

    assert always_zero("strong") == pytest.approx(always_zero("destructive"), rel=1e-5)


def test_the_search_among_pictures_finds_the_same_whatever_the_model_was_trained_on() -> None:
    """Pairs of the common range, of which a model of narrow changes knows a part."""

    def errors(**changes: float) -> dict[str, float]:
        space = ActionSpace.from_config(config.Actions(**changes), 8)  # pyright: ignore[reportArgumentType]
        return infer.measure(Deaf(space=space, size=8), small(20), small(4))["pixel_search"]["components"]

    assert errors(brightness=0.1, contrast=0.1) == pytest.approx(errors(), abs=1e-6)


def test_the_measurement_is_written_with_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "open_world", lambda run, session: oracle())
    np.savez(tmp_path / "pictures.npz", images=small(40).permute(0, 2, 3, 1).numpy())
    data = str(tmp_path / "pictures.npz")
    o = Infer(run="run", data=data, images=3, train_images=20, out=str(tmp_path), speed=SPEED)
    found = infer.infer(o)
    assert json.loads(Path(found["path"]).read_text())["inferred_action_error"] < 0.01
    assert Path(found["path"]).with_suffix(".png").stat().st_size > 5_000
    apart = infer.infer(replace(o, shift=4))
    assert Path(apart["path"]).name == "infer-shift4-pictures.json"
    assert apart["shift"] == 4


def test_a_model_without_changes_of_an_amount_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = ActionSpace.from_config(config.Actions(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0), 8)
    monkeypatch.setattr(infer, "open_world", lambda run, session: Oracle(space=still, size=8))
    monkeypatch.setattr(infer, "open_splits", lambda *words: pytest.fail("images were read"))
    with pytest.raises(UserError, match="run was trained without changes of an amount"):
        infer.infer(Infer(run="run", data="sample", out=str(tmp_path), speed=SPEED))


def test_two_images_give_the_change_in_raw_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "open_world", lambda run, session: oracle())
    clean = small(1)[0]
    changed = (255 - clean.int() + 15).clamp(0, 255).byte()
    for name, image in (("a", clean), ("b", changed)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    source, target = (str(tmp_path / f"{name}.png") for name in ("b", "a"))
    found = infer.infer(Infer(run="run", source=source, target=target, out=str(tmp_path), speed=SPEED))
    assert found["action"]["negative"] == 1
    assert found["action"]["light"] == pytest.approx(15 / 255, abs=0.003)
    assert found["action"]["warmth"] == pytest.approx(0, abs=0.003)
    assert found["residual"] < 0.01 * found["null_residual"]
    by_pixels = found["pixel_search"]
    assert by_pixels["action"]["negative"] == 0, "pixels cannot say what a source carries"
    assert by_pixels["null_residual"] == pytest.approx(
        float((changed - clean.float()).div(255).square().mean()), rel=1e-4
    )
    same = infer.infer(Infer(run="run", source=target, target=target, out=str(tmp_path), speed=SPEED))["pixel_search"]
    assert same["action"]["light"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("source", "target", "data"), [("", "", ""), ("a.png", "", ""), ("a.png", "b.png", "sample")])
def test_two_images_or_a_source(source: str, target: str, data: str) -> None:
    with pytest.raises(UserError, match="Give two images"):
        infer.infer(Infer(run="run", source=source, target=target, data=data))


def test_crops_of_two_images_are_not_moved() -> None:
    with pytest.raises(UserError, match="--shift 4 moves the crops of a source"):
        Infer(run="run", source="a.png", target="b.png", shift=4)
