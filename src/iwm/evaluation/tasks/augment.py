"""The pictures a classifier is trained on: views of every image, drawn once and kept, or drawn anew every epoch.

    view 0     the image itself, squared
    view v     a random resized crop, perhaps mirrored; with `augment="timm"` then RandAugment (m9 mstd0.5 inc1) and
               random erasing (0.25), the recipe of MAE's finetuning

View v of an image is a pure function of the settings, the seed, v and the image's index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from iwm.data.crops import least_side, random_crop
from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_all
from iwm.runtime import devices, distributed, sharing
from iwm.runtime.console import progress
from iwm.runtime.randomness import seeded
from iwm.verbs.shared import Classification

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, the scale of the noise that random erasing fills in and the colour around a turned image."""


@dataclass(frozen=True)
class Maker:
    """Makes view `number` of image `index` of a set."""

    images: ImageSet
    size: int
    settings: Classification

    def decoded(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The image that views are cut from. Raises BrokenImage."""
        return self.images.load(index, least_side(self.size, self.settings.crop_area))

    def view(self, image: UInt8[Tensor, "3 h w"], index: int, number: int) -> UInt8[Tensor, "3 s s"]:
        """A crop of the decoded image; `number` from 1."""
        o = self.settings
        crop = random_crop(image, self.size, o.crop_area, o.flip, o.seed, number, index)
        if o.augment == "crops":
            return crop
        with seeded(o.seed, "augmentation", number, index):
            return distorted(crop)

    def views(self, indices: Int64[np.ndarray, " b"], number: int) -> UInt8[Tensor, "b 3 s s"]:
        """View `number` of several images. Raises BrokenImage."""
        return torch.stack([self.view(self.decoded(int(index)), int(index), number) for index in indices])


def distorted(image: UInt8[Tensor, "3 s s"]) -> UInt8[Tensor, "3 s s"]:
    """RandAugment and random erasing by timm, drawn from the global generators."""
    # MAE's and timm's training script: shifts by up to .45 of the side, uncovered corners in the mean colour.
    # At magnitude 10, where its noise is clipped, Pillow would be asked to keep 0 bits of a colour, which it refuses.
    hints: dict[str, Any] = {
        "magnitude_max": 9.99,
        "translate_const": int(image.shape[-1] * 0.45),
        "img_mean": tuple(round(255 * value) for value in MEAN),
    }
    changed = rand_augment_transform("rand-m9-mstd0.5-inc1", hints)(Image.fromarray(image.permute(1, 2, 0).numpy()))
    mean, std = (torch.tensor(stat).view(3, 1, 1) for stat in (MEAN, STD))
    pixels = (torch.from_numpy(np.array(changed)).permute(2, 0, 1).float() / 255 - mean) / std
    erased = RandomErasing(probability=0.25, mode="pixel", device="cpu")(pixels)
    return ((erased * std + mean) * 255).round().clamp(0, 255).byte()


@dataclass(frozen=True)
class Pictures:
    """Pictures of the readable images of a set: values[view, image], their indices, and what draws new ones."""

    values: UInt8[Tensor, "v n 3 s s"]
    kept: Int64[np.ndarray, " n"]
    fresh: Callable[[Int64[np.ndarray, " b"], int], Tensor] | None = None
    """(rows of `values`, epoch) to pictures of that epoch; None where the views are all there is."""


def draw(maker: Maker, views: int) -> Pictures:
    """Every readable image as itself and in `views` - 1 further views; 0: itself, with a fresh view every epoch."""
    plain, kept = load_all(maker.images, maker.size)
    if views == 0:
        return Pictures(plain[None], kept, lambda rows, epoch: maker.views(kept[rows], epoch + 1))
    if views == 1:
        return Pictures(plain[None], kept)

    values = torch.empty(views, *plain.shape, dtype=torch.uint8)
    values[0] = plain
    del plain
    with progress("images") as bar:
        task = bar.add_task("random crops", total=len(sharing.share_of(len(kept))), note="")

        def crops(indices: Int64[np.ndarray, " n"]) -> UInt8[Tensor, "n w 3 s s"]:
            done = torch.empty(len(indices), views - 1, *values.shape[2:], dtype=torch.uint8)
            for row, index in enumerate(indices):
                image = maker.decoded(int(index))
                for number in range(1, views):
                    done[row, number - 1] = maker.view(image, int(index), number)
                bar.advance(task)
                distributed.advance()
            return done

        at_once = max(1, len(kept) // views)  # their crops take no more than one view of all images
        for start in range(0, len(kept), at_once):
            rows = slice(start, start + at_once)
            values[1:, rows] = sharing.by_rows(crops, kept[rows]).transpose(0, 1)
    return Pictures(values, kept)


def require_memory(train: int, test: int, views: int, size: int) -> None:
    """Raises UserError when the pictures of so many images do not fit into free memory.

    Both sets are held decoded, and once more while they are stacked: of the training images one view.
    """
    needed = ((max(views, 1) + 1) * train + 2 * test) * 3 * size**2
    what = f"{train:,} training images in {max(views, 1)} views and {test:,} to test on, of {size} px,"
    devices.require_memory(needed, what, "lower --views or --size, or give fewer")
