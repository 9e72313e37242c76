"""Pixels: decode an image file to RGB bytes, square it, crop it (alone, or with the classes of its pixels). Every
random crop is a pure function of seed, step and image (`randomness.py`).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from iwm.runtime.randomness import uniforms

IGNORED = -100
"""Class of pixels that neither teach nor count: what PyTorch's cross-entropy leaves out."""


class BrokenImage(Exception):
    """One image that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode(data: bytes, name: str = "image") -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to upright RGB bytes. Raises BrokenImage.

    EXIF orientation is applied; transparency is laid on white; 16 bits become 8 by scaling; floats are taken as 0..1,
    or as 0..255 when one exceeds 1; of an animation the first frame counts.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = np.array(_rgb(picture))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise BrokenImage(name, reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(_grey_bytes(np.asarray(picture, dtype=np.float64), picture.mode)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        # Pillow knows the way from La only over LA.
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _grey_bytes(values: Float[np.ndarray, "h w"], mode: str) -> UInt8[np.ndarray, "h w"]:
    """Scale integers of 16 bits, or floats of 0..1 or 0..255, to bytes."""
    low, high = values.min(), values.max()
    top = 65535.0 if mode.startswith("I") else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # also when there are NaNs
        raise ValueError(f"grey values from {low:g} to {high:g}, where 0 to {top:g} is understood")
    return np.round(values * (255 / top)).astype(np.uint8)


def reason(error: BaseException) -> str:
    """What went wrong, for BrokenImage and for sentences."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__


def center(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """Resize the shorter side to `size` (bicubic, antialiased) and cut out the middle."""
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
    found = fits[rows, first]
    box_width = np.where(found, box_widths[rows, first], np.minimum(widths, np.rint(heights * 4 / 3)))
    box_height = np.where(found, box_heights[rows, first], np.minimum(heights, np.rint(widths * 4 / 3)))
    top, left = heights - box_height, widths - box_width
    top = np.floor(np.where(found, u[:, -3] * (top + 1), top / 2))
    left = np.floor(np.where(found, u[:, -2] * (left + 1), left / 2))
    return np.stack([top, left, box_height, box_width], 1).astype(np.int64), u[:, -1] < flip


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
