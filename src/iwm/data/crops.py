"""Square an image, or crop it at random, alone or with the classes of its pixels.

Every random crop is a pure function of seed, step and image (`iwm.runtime.randomness`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int16, Int64, UInt8
from torch import Tensor

from iwm import config
from iwm.runtime.randomness import uniforms

IGNORED = -100
"""Class of pixels that neither teach nor count: what PyTorch's cross-entropy leaves out."""
STRIP = 8
"""Sides' ratio from which `center` cuts before it scales: 1 x 65000 px at 224 would be 14 million px long."""


def center(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """Resize the shorter side to `size` (bicubic, antialiased) and cut out the middle.

    Of a strip whose longer side exceeds STRIP times the shorter only that much around the middle is resized.
    """
    longest = STRIP * min(image.shape[1:])
    if max(image.shape[1:]) > longest:
        top, left = (max(0, side - longest) // 2 for side in image.shape[1:])
        image = image[:, top : top + longest, left : left + longest]
    height, width = image.shape[1:]
    scale = size / min(height, width)
    if scale != 1:
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
        image = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def crop_boxes(
    heights: Int64[np.ndarray, " b"],
    widths: Int64[np.ndarray, " b"],
    area: tuple[float, float],
    flip: float,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    purpose: str = "crop",
) -> tuple[Int64[np.ndarray, "b 4"], Bool[np.ndarray, " b"]]:
    """Boxes (top, left, height, width) of a random resized crop, and which crops are mirrored.

    As torchvision's: up to ten tries of an area and a log-uniform aspect of 3/4..4/3, then the largest central box.
    Crops of another `purpose` are independent ones.
    """
    tries = 10
    u = uniforms(seed, purpose, step, indices, 2 * tries + 3)
    areas = (heights * widths)[:, None] * (area[0] + (area[1] - area[0]) * u[:, :tries])
    aspects = np.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[:, tries : 2 * tries])
    box_widths, box_heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (box_widths > 0) & (box_widths <= widths[:, None]) & (box_heights > 0) & (box_heights <= heights[:, None])
    first, rows = fits.argmax(1), np.arange(len(indices))
    fitting = fits[rows, first]
    box_width = np.where(fitting, box_widths[rows, first], np.minimum(widths, np.rint(heights * 4 / 3)))
    box_height = np.where(fitting, box_heights[rows, first], np.minimum(heights, np.rint(widths * 4 / 3)))
    top, left = heights - box_height, widths - box_width
    top = np.floor(np.where(fitting, u[:, -3] * (top + 1), top / 2))
    left = np.floor(np.where(fitting, u[:, -2] * (left + 1), left / 2))
    return np.stack([top, left, box_height, box_width], 1).astype(np.int64), u[:, -1] < flip


def least_side(size: int, area: tuple[float, float]) -> int:
    """Shorter side of an image whose smallest random crop still has `size` px: area[0] of a square at 3:4."""
    return math.ceil(size / math.sqrt(area[0] * 3 / 4))


def steps_at_start(data: config.Data, steps: int) -> int:
    """How many of a training's steps, the first ones, have crops of `start_size`: none where that is not set."""
    return math.ceil(data.start_share * steps) if data.start_size else 0


def crop_size(data: config.Data, step: int, steps: int) -> int:
    """Side of the crops of a step of a training of so many steps."""
    return data.start_size if step < steps_at_start(data, steps) else data.image_size


def random_crop(
    image: UInt8[Tensor, "3 h w"],
    size: int,
    area: tuple[float, float],
    flip: float,
    seed: int,
    step: int,
    index: int,
) -> UInt8[Tensor, "3 {size} {size}"]:
    """Random resized crop (bicubic, antialiased) and flip of one image: a pure function of seed, step and index."""
    return random_crops([image], size, area, flip, seed, step, np.array([index]))[0]


def random_crops(
    images: Sequence[UInt8[Tensor, "3 _h _w"]],
    size: int,
    area: tuple[float, float],
    flip: float,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    purpose: str = "crop",
) -> UInt8[Tensor, "b 3 {size} {size}"]:
    """`random_crop` of several images at once, the same bytes at a fraction of the overhead."""
    shapes = np.array([image.shape[1:] for image in images])
    boxes, mirrored = crop_boxes(shapes[:, 0], shapes[:, 1], area, flip, seed, step, indices, purpose)
    crops = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for row, (image, (top, left, height, width)) in enumerate(zip(images, boxes.tolist(), strict=True)):
        box = image[None, :, top : top + height, left : left + width]
        # torchvision's resized_crop without its dispatch, which would double the time at 32 pixels.
        crop = F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0]
        crops[row] = crop.flip(2) if mirrored[row] else crop
    return crops


@dataclass(frozen=True)
class ScaledCrop:
    """A box of an image, scaled as a whole, mirrored or not, on a square canvas of `size` px that it may not fill.

    Pixels and classes go through the same geometry, so they stay aligned to half a pixel.
    """

    size: int
    box: tuple[int, int, int, int]
    """Top, left, height, width in the image."""
    scaled: tuple[int, int]
    """Height and width of the box on the canvas."""
    place: tuple[int, int]
    """Top and left of the box on the canvas."""
    mirrored: bool

    def of_image(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 {self.size} {self.size}"]:
        """The crop (bicubic, antialiased); the rest of the canvas has its mean colour."""
        box = F.interpolate(self._cut(image)[None], self.scaled, mode="bicubic", antialias=True)[0]
        canvas = box.float().mean(dim=(1, 2)).round().to(torch.uint8)[:, None, None].repeat(1, self.size, self.size)
        return self._on(canvas, box)

    def of_mask(self, mask: Int16[Tensor, "h w"]) -> Int16[Tensor, "{self.size} {self.size}"]:
        """The classes (nearest); the rest of the canvas is IGNORED."""
        # "nearest-exact" shares its pixel centres with bicubic; plain "nearest" is half a pixel off.
        box = F.interpolate(self._cut(mask)[None, None].float(), self.scaled, mode="nearest-exact")[0, 0].short()
        return self._on(torch.full((self.size, self.size), IGNORED, dtype=torch.int16), box)

    def _cut(self, image: Tensor) -> Tensor:
        top, left, height, width = self.box
        return image[..., top : top + height, left : left + width]

    def _on(self, canvas: Tensor, box: Tensor) -> Tensor:
        (top, left), (height, width) = self.place, self.scaled
        canvas[..., top : top + height, left : left + width] = box
        return canvas.flip(-1) if self.mirrored else canvas


def scaled_crop(
    height: int, width: int, size: int, scales: tuple[float, float], flip: float, seed: int, step: int, index: int
) -> ScaledCrop:
    """Multi-scale crop as segmentation uses it: the image scaled by a log-uniform factor, then cut to `size` px, or
    laid on a canvas of that size where it is smaller."""
    u = uniforms(seed, "scaled crop", step, np.array([index]), 6)[0]
    scale = math.exp(math.log(scales[0]) + (math.log(scales[1]) - math.log(scales[0])) * u[0])
    box, scaled, corner, place = [], [], [], []
    for number, side in enumerate((height, width)):
        cut = min(side, max(1, round(size / scale)))
        length = size if cut < side else min(size, max(1, round(cut * scale)))
        box.append(cut)
        scaled.append(length)
        corner.append(math.floor(u[1 + number] * (side - cut + 1)))
        place.append(math.floor(u[3 + number] * (size - length + 1)))
    return ScaledCrop(
        size, (corner[0], corner[1], box[0], box[1]), (scaled[0], scaled[1]), (place[0], place[1]), bool(u[5] < flip)
    )
