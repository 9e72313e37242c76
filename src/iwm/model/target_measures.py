"""What targets are made of: how much of them is position and the patch's own pixels.

    position share      Var(position mean) / Var(target)
    pixel R2            held out, of a linear regression of the target on position and the patch's own pixels

Positions are told as one number each (a mean for every position, without penalty), pixels as at most 8 x 8 colours a
patch by ridge regression.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.views import Views, make_views, reference_views
from iwm.data.splits import tenth_of_rows
from iwm.model.objectives.objective import ModelParts
from iwm.model.objectives.pixels import patches_of
from iwm.model.objectives.spread import photometric_share
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.algebra import double, ridge, standardisation

MOST_TOKENS = 2**14
"""Tokens that a regression sees: 256 images of 64 patches."""
FINEST = 8
"""Colours on a side of a patch that it is told."""
STRENGTH = 1e-3
"""Of the ridge regression on standardised pixels."""


def position_share(targets: Float[Tensor, "b n d"]) -> float:
    """Share of the targets' variance, over images and positions, that is the position's mean; without bias."""
    targets, count = double(targets), len(targets)
    if count < 2:
        return float("nan")
    means = targets.mean(dim=0)
    within = (targets - means).square().mean() * count / (count - 1)
    # The means of finitely many images vary by themselves.
    noise = within / count * (1 - 1 / len(means))
    position = ((means - means.mean(dim=0)).square().mean() - noise).clamp_min(0)
    return float(position / (position + within).clamp_min(1e-12))


def own_pixels(images: Float[Tensor, "b 3 h w"], patch_size: int) -> Float[Tensor, "b n k"]:
    """The pixels of every patch, in row-major order, averaged to at most 8 x 8 colours."""
    if patch_size <= FINEST:
        return patches_of(images, patch_size)
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    return patches_of(F.adaptive_avg_pool2d(images, (grid[0] * FINEST, grid[1] * FINEST)), FINEST)


def pixel_r2(targets: Float[Tensor, "b n d"], pixels: Float[Tensor, "b n k"]) -> float:
    """R2 of the targets of a seeded tenth of the images, all channels together, by a regression on position and own
    pixels that was fitted to the others."""
    targets, pixels = double(targets), double(pixels)
    rest, tenth = (rows.to(targets.device) for rows in tenth_of_rows(len(targets), 0))
    middle, centre = targets[rest].mean(dim=0), pixels[rest].mean(dim=0)
    lessons = (pixels[rest] - centre).flatten(0, 1)
    mean, deviation = standardisation(lessons)
    weight, bias = ridge((lessons - mean) / deviation, (targets[rest] - middle).flatten(0, 1), STRENGTH)
    guess = middle + ((pixels[tenth] - centre - mean) / deviation) @ weight + bias
    off = (targets[tenth] - targets[rest].mean(dim=(0, 1))).square().sum()
    return float(1 - (targets[tenth] - guess).square().sum() / off.clamp_min(1e-12))


@torch.no_grad()
def measures(model: ModelParts, views: Views, target: Float[Tensor, "b n d"], blocks: Sequence[int]) -> dict[str, Any]:
    """The numbers of a line of metrics on targets in target space, and on the teacher's blocks of these numbers."""
    count = max(2, MOST_TOKENS // target.shape[1])
    images = views.target[:count]
    pixels = own_pixels(model.encoder.normalise(images), model.encoder.patch_size)
    outputs = model.target_encoder.intermediates(images, blocks, affine=False)
    return {
        "target_position_share": position_share(target),
        "target_pixel_r2": pixel_r2(target[:count], pixels),
        "target_pixel_r2_blocks": [pixel_r2(tokens, pixels) for tokens in outputs],
    }


@torch.no_grad()
def of_images(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int) -> dict[str, Any]:
    """`measures` on views of these images, made as in training, and the photometric share on those of the reference: as
    many as have MOST_TOKENS tokens, and not more than 256. Nothing where targets are not learned (`objective.kind`
    pixels)."""
    objective, encoder = model.objective, model.target_encoder
    if not objective.learned_targets or len(images) < 2:
        return {}
    images = images[: min(256, max(2, MOST_TOKENS // (model.grid[0] * model.grid[1])))]
    indices = np.arange(len(images))
    views = make_views(images, model.space, model.settings.actions, seed, 0, indices, model.device)
    target = model.target_norm(objective.raw_target(model, views.target))
    numbers = measures(model, views, target, [number for number in encoder.alike if number <= encoder.layer])
    changes = reference_views(images, model.space, seed, 0, indices, model.device)
    return numbers | {"photometric_share": share_of(model, changes)}


@torch.no_grad()
def share_of(model: ImageWorldModel, changes: Views) -> float:
    """The photometric share of the targets between source and target of these views."""
    ends = (model.objective.raw_target(model, part) for part in (changes.source, changes.target))
    return photometric_share(*map(model.target_norm, ends))
