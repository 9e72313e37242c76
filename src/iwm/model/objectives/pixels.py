"""Pixels of patches as targets (MAE, generative world models).

L = mean_i || p(f(x_visible), a)_i - norm(patch_i of y) ||^2
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iwm.model.objectives.objective import ModelParts
from iwm.model.objectives.objective import Pixels as Images
from iwm.model.objectives.prediction import PatchPrediction
from iwm.model.objectives.target_norm import TargetNorm
from iwm.model.vit import Grid


def patches_of(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b n d"]:
    """The pixels of every patch of `size` x `size`, d = 3 size^2 numbers (row, column, colour; MAE's order), patches in
    row-major order. Sides must be multiples of `size`."""
    return (
        F.pixel_unshuffle(images, size).unflatten(1, (3, size * size)).permute(0, 3, 4, 2, 1).flatten(3).flatten(1, 2)
    )


def images_of(patches: Float[Tensor, "b n d"], grid: Grid, size: int) -> Float[Tensor, "b 3 h w"]:
    """The images whose `patches_of` these are, on a grid of patches of `size` x `size`."""
    colours = patches.unflatten(2, (size * size, 3)).transpose(2, 3).flatten(2)
    return F.pixel_shuffle(colours.transpose(1, 2).unflatten(2, grid), size)


class Pixels(PatchPrediction):
    """Predict the pixels of the target's patches: a generative world model, or MAE without actions."""

    name = "pixels"
    noun = "a generative world model"
    predicts_tokens = False

    @property
    def output_width(self) -> int:
        return 3 * self.settings.encoder.patch_size**2

    def normalisation(self) -> TargetNorm:
        return TargetNorm(self.settings.objective, self.output_width, of_pixels=True)

    def raw_target(self, model: ModelParts, images: Images) -> Float[Tensor, "b n r"]:
        """The pixels of the patches."""
        return patches_of(model.encoder.normalise(images), model.encoder.patch_size)

    def shown(self, model: ModelParts, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b 3 h w"] | None:
        """The pixels themselves; None where the patches' own means and deviations were normalised away."""
        patches = model.target_norm.inverse(tokens)
        if patches is None:
            return None
        images = images_of(patches, grid, model.encoder.patch_size)
        return images * model.encoder.std + model.encoder.mean
