"""Planted targets: what is put into them is what the measures say."""

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.actions.reference import reference_actions
from iwm.actions.views import make_views
from iwm.model import target_measures as measures
from iwm.model.world_model import ImageWorldModel

IMAGES, PATCHES, WIDTH, PIXELS = 200, 9, 12, 27


def planted(position: float, pixel: float, rest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of these variances by position, by the patch's own pixels (a linear map of them) and by neither."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator)
        return values / values.std()

    pixels = unit(IMAGES, PATCHES, PIXELS)
    means = unit(PATCHES, WIDTH)
    means = (means - means.mean(0)) / (means - means.mean(0)).square().mean().sqrt()
    linear = pixels @ unit(PIXELS, WIDTH)
    parts = (means.expand(IMAGES, -1, -1), linear / linear.std(), unit(IMAGES, PATCHES, WIDTH))
    return sum(v**0.5 * part for v, part in zip((position, pixel, rest), parts, strict=True)), pixels  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.2), (0.0, 0.1, 0.9), (0.6, 0.0, 0.4), (0.0, 1.0, 0.0)], ids=str)
def test_shares_of_planted_targets(shares):
    targets, pixels = planted(*shares)
    position, pixel, _ = shares
    assert measures.position_share(targets) == pytest.approx(position, abs=0.02)
    assert measures.pixel_r2(targets, pixels) == pytest.approx(position + pixel, abs=0.04)
    assert measures.pixel_r2(3 * targets + 5, 0.1 * pixels - 2) == pytest.approx(position + pixel, abs=0.04)


def test_the_position_share_is_not_that_of_chance():
    """Means of a few images alone would say .2."""
    targets = torch.randn(5, 64, 32)
    assert measures.position_share(targets) == pytest.approx(0, abs=0.02)


def test_pixels_are_those_of_the_patch_at_most_8_x_8():
    images = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(measures.own_pixels(images, 4)[0, 1], images[0, :, :4, 4:8].permute(1, 2, 0).flatten())
    coarse = measures.own_pixels(images, 16)
    assert coarse.shape == (2, 6, 3 * 64)
    wanted = images[1, :, 16:32, 0:16].unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(coarse[1, 3], wanted.permute(1, 2, 0).flatten())
    assert measures.own_pixels(torch.rand(2, 3, 28, 28), 14).shape == (2, 4, 3 * 64)


OTHER_CHANGES = {
    "the reference": reference_actions("photometric"),
    "half jittered": config.Actions(jitter_probability=0.5),
    "no photometry": config.Actions(level="jitter", jitter_probability=0.0),
    "stronger": config.Actions(level="strong"),
    "clean views": config.Actions(clean="both"),
}


@torch.no_grad()
@pytest.mark.parametrize("shown", OTHER_CHANGES.values(), ids=OTHER_CHANGES.keys())
def test_the_photometric_share_is_of_the_targets_not_of_the_changes_that_a_run_is_shown(shown):
    """By the formula, on views of the level `destructive`, all jittered, whatever the run's own changes are: the same
    weights have the same share."""
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    cfg = config.Actions(jitter_probability=1.0)
    model = ImageWorldModel(tiny(actions=cfg)).eval()
    views = make_views(images, model.space, cfg, 5, 0, np.arange(20), "cpu")
    source, target = (model.target(part).values.double() for part in (views.source, views.target))
    off = (target - target.mean(0)).square().sum() / 19
    torch.manual_seed(0)
    numbers = measures.of_images(ImageWorldModel(tiny(actions=shown)).eval(), images, seed=5)
    assert numbers["photometric_share"] > 0.01
    assert numbers["photometric_share"] == pytest.approx(float((source - target).square().sum() / 20 / off), rel=1e-4)
