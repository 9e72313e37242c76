"""The photometric set of the paper (appendix A): colour jitter on both views, destructive operations on the source.

Images are float in [0, 1]; the meaning of every parameter is torchvision's.
"""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iwm import config
from iwm.actions.transformation import Transformation, per_image
from iwm.runtime.errors import UserError


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Grey level by the weights torchvision and Pillow use (ITU-R 601)."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def brightness(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Multiply by `value` (1: unchanged, 0: black), clamped to [0, 1]."""
    return images.mul(per_image(value)).clamp_(0, 1)


def contrast(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Blend with the mean grey level of the image itself (1: unchanged, 0: uniform grey), clamped to [0, 1]."""
    red, green, blue = images.flatten(2).mean(dim=2).unbind(dim=1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return images.mul(per_image(value)).add_(per_image((1 - value) * grey)).clamp_(0, 1)


def saturation(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Blend with the grey image (1: unchanged, 0: grey), clamped to [0, 1]."""
    return torch.lerp(_luma(images), images, per_image(value)).clamp_(0, 1)


def hue(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue by `value` turns (0: unchanged) at constant HSV saturation and value.

    Without the six cases of the usual conversion: with every channel scaled to c' = (c - min) / (max - min), the
    hue's distance from pure red is 1 + g' + b' - r' sixths of a turn, towards green where g > b; and a hue H gives
    back r = min + (max - min) (1 - T(H - 3)), g = min + (max - min) T(H - 2), b likewise with H - 4, where
    T(x) = clamp(2 - |x|, 0, 1).
    """
    red, green, blue = images.split(1, dim=1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    high, low = torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)
    chroma = high - low
    # Grey pixels have no hue; with chroma 0 any number gives back the same grey.
    turn = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-12)).add_(1)
    turn.copysign_(green - blue).add_(per_image(6 * value))
    turn.sub_(turn.mul(1 / 6).floor_(), alpha=6)  # remainder_(6) is several times slower on CPUs
    turned = torch.empty_like(images)
    for channel, centre in enumerate((3, 2, 4)):
        torch.sub(turn, centre, out=turned[:, channel : channel + 1])
    turned.abs_().sub_(2).clamp_(-1, 0).mul_(chroma)  # now -(max - min) T
    turned[:, :1].add_(high)
    torch.sub(low, turned[:, 1:], out=turned[:, 1:])
    return turned


def grayscale(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Grey level in all three channels; `value` is not used."""
    return _luma(images).expand_as(images)


def gaussian_blur(
    images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"], radius: int = 3
) -> Float[Tensor, "b 3 h w"]:
    """Convolve with a Gaussian of standard deviation `value` pixels, cut off at `radius`, borders reflected.

    Equals torchvision's gaussian_blur with kernel size 2 radius + 1. The radius is cut where the image is too small
    to be reflected that far.
    """
    radius = min(radius, images.shape[-1] - 1, images.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-(offsets**2) / (2 * value[:, None] ** 2), dim=1)
    for axis in (2, 3):
        pad = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        padded = torch.nn.functional.pad(images, pad, mode="reflect")
        length = images.shape[axis]
        # Both sides of the kernel weigh the same: r + 1 multiplications instead of 2 r + 1.
        images = padded.narrow(axis, radius, length) * per_image(kernel[:, radius])
        for k in range(radius):
            pair = padded.narrow(axis, k, length) + padded.narrow(axis, 2 * radius - k, length)
            images.addcmul_(pair, per_image(kernel[:, k]))
    return images


def solarize(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Invert every channel at or above the threshold `value`."""
    return torch.where(images >= per_image(value), 1 - images, images)


PHOTOMETRIC = (
    Transformation(
        name="brightness", apply=brightness, graded=True, both=True,
        low=0.6, high=1.4, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="contrast", apply=contrast, graded=True, both=True,
        low=0.6, high=1.4, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="saturation", apply=saturation, graded=True, both=True,
        low=0.8, high=1.2, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="hue", apply=hue, graded=True, both=True,
        low=-0.1, high=0.1, neutral=0.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="grayscale", apply=grayscale, graded=False, both=False, low=1.0, high=1.0, neutral=0.0, probability=0.2
    ),
    Transformation(
        name="blur", apply=gaussian_blur, graded=False, both=False, low=0.1, high=2.0, neutral=0.0, probability=0.2
    ),
    Transformation(
        name="solarize", apply=solarize, graded=False, both=False, low=0.5, high=0.5, neutral=2.0, probability=0.2
    ),
)  # fmt: skip
"""At the default level, for 224 px; in the order they are applied."""


STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
"""The jitter of level "strong"."""
DESTRUCTIVE = ("grayscale", "blur", "solarize")
REPLACED: dict[str, tuple[str, ...]] = {"jitter": DESTRUCTIVE, "destructive": (), "strong": tuple(STRONG)}
"""The settings for which a level has values of its own."""


def photometric(cfg: config.Actions, image_size: int) -> tuple[Transformation, ...]:
    """The set for square images of `image_size` pixels.

    Level "jitter" keeps the destructive transformations' places in the action but never applies them, so models of
    all levels stay comparable. Raises UserError on an impossible range.
    """
    strengths = STRONG if cfg.level == "strong" else {name: getattr(cfg, name) for name in STRONG}
    for name, strength in strengths.items():
        if not 0 <= strength <= (0.5 if name == "hue" else math.inf):
            limit = "between 0 and 0.5 turns" if name == "hue" else "at least 0"
            raise UserError(f"Setting 'actions.{name}' is {strength:g}; it must be {limit}.")
    sigma = cfg.blur_sigma or _blur_sigma(image_size)
    if not 0 < sigma[0] <= sigma[1]:
        raise UserError(f"Setting 'actions.blur_sigma' is {sigma}; give two positive numbers, the smaller first.")
    changes: dict[str, dict[str, Any]] = {
        name: {"low": max(0.0, 1 - s), "high": 1 + s, "probability": cfg.jitter_probability}
        for name, s in strengths.items()
    }
    changes["hue"] |= {"low": -strengths["hue"], "high": strengths["hue"]}
    for name in DESTRUCTIVE:
        changes[name] = {"probability": 0.0 if cfg.level == "jitter" else getattr(cfg, name)}
    changes["blur"] |= {"low": sigma[0], "high": sigma[1]}
    return tuple(dataclasses.replace(member, **changes[member.name]) for member in PHOTOMETRIC)


def _blur_sigma(image_size: int) -> tuple[float, float]:
    """0.1-2.0 pixels at 224 px (paper appendix A), at small sizes narrowed to what visibly changes pixels."""
    if image_size > 224:
        return 0.1 * image_size / 224, 2.0 * image_size / 224
    way = max(0.0, (image_size - 32) / (224 - 32))
    return 0.4 + way * (0.1 - 0.4), 1.0 + way * (2.0 - 1.0)
