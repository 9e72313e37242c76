"""Two more rulers beside the MRR: predictions stretched to their full change, and one space for all models.

    calibrated   S + (p(a) - S) / s,   S = p(0),   s = sum dp . dt / sum |dt|^2   on training images,
                 dp = p(a) - S,   dt = target(y_a) - target(x)
    common       the prediction as 8 x 8 colours, ranked among the real colours of the changed images

A predictor that does not know everything shrinks its change (s < 1) and is right to; against targets that all move
fully this costs ranks, which the first gives back. The second asks every model the same question, whatever its targets
are: which of these images? The colours are a ridge regression on each target, fitted to clean training images. Their
own limit, the rank that the true targets reach through them, stands beside it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.data.splits import tenth_of_rows
from iwm.model.objectives.pixels import images_of, patches_of
from iwm.model.pixel_decoder import STRENGTHS
from iwm.model.vit import Grid
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import distributed
from iwm.runtime.algebra import RidgeSums

SIDE = 8
"""Colours on a side of an image, in the space common to all models."""
IMAGES, CHANGES = 64, 8
"""Training images, and changes of each, that the slope is taken over."""
CLEAN = 512
"""Training images that the colours are fitted to."""
LEAST_SLOPE = 0.01
"""Below it a predictor hardly follows the action, and nothing is stretched."""
BATCH = 64


def colours_of(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
    """The mean colours of 8 x 8 equal parts of every image."""
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


@dataclass(frozen=True)
class ColourMap:
    """Tokens in target space to the 8 x 8 colours of their image: `cells` x `cells` colours of each patch, linearly."""

    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    cells: int

    def __call__(self, values: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b k"]:
        patches = values.double() @ self.weight + self.bias
        return colours_of(images_of(patches, grid, self.cells))


@dataclass(frozen=True)
class Calibration:
    """What is learned of a model from training images before it is ranked on others."""

    slope: float
    """Of the predicted on the true change."""
    colours: ColourMap

    def stretched(self, moved: Float[Tensor, "b n d"], still: Float[Tensor, "1 n d"]) -> Float[Tensor, "b n d"]:
        """Predictions with the whole change; as they are where there is next to none."""
        return still + (moved - still) / (self.slope if self.slope >= LEAST_SLOPE else 1.0)


@torch.no_grad()
@distributed.share()  # every rank does all of it
def calibrate(
    model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int, bank_space: ActionSpace
) -> Calibration:
    """The slope and the colours of a model, by training images; two or more are needed."""
    return Calibration(slope_of(model, images[:IMAGES], seed, bank_space), colour_map(model, images[:CLEAN], seed))


def slope_of(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int, bank_space: ActionSpace) -> float:
    """Slope of the predicted on the true change over some changes of the images."""
    along = moves = 0.0
    for index, image in enumerate(images):
        pixels = image[None].to(model.device).float() / 255
        parameters = bank_space.sample_bank(seed, index, CHANGES)
        actions = model.space.difference(model.space.neutral(CHANGES), parameters).to(model.device)
        entries = bank_space.apply(pixels.expand(CHANGES, -1, -1, -1), parameters)
        clean = model.encode(pixels)
        many = Tokens(clean.values.expand(CHANGES, -1, -1), clean.grid)
        still = model.predict(clean, model.space.null(1, model.device)[0]).values.float()
        predicted = model.predict(many, actions).values.float() - still
        true = model.target(entries).values.float() - model.target(pixels).values.float()
        along, moves = along + float((predicted * true).sum()), moves + float(true.square().sum())
    return along / max(moves, 1e-12)


def colour_map(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int) -> ColourMap:
    """Ridge regression from target tokens to their patch's colours; a tenth of the images chooses the strength."""
    cells = math.ceil(SIDE / min(model.grid))
    rest, tenth = tenth_of_rows(len(images), seed)
    sums: dict[bool, RidgeSums] = {}
    for rows, held in ((rest, False), (tenth, True)):
        for part in rows.split(BATCH):
            pixels = images[part].to(model.device).float() / 255
            target = model.target(pixels)
            tokens, grid = target.values.float(), target.grid
            colours = patches_of(F.adaptive_avg_pool2d(pixels, (grid[0] * cells, grid[1] * cells)), cells)
            own = sums.setdefault(held, RidgeSums(tokens.shape[2], colours.shape[2], tokens.device))
            own.add(tokens.flatten(0, 1), colours.flatten(0, 1))
    weight, bias = sums[False].choose(sums[True], STRENGTHS)
    return ColourMap(weight, bias, cells)
