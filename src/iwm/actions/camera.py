"""The `camera` set: what a camera does to a picture on its way to a file. Gamma and white balance are on both views;
sensor noise and JPEG on the source only, graded too, so that the action says how much of them is to be undone.

Images are float in [0, 1].
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from iwm.actions.transformation import Transformation, per_image

Images = Float[Tensor, "b 3 h w"]
Values = Float[Tensor, " b"]


def gamma(images: Images, value: Values) -> Images:
    """Raise to the power 2^`value` (0: unchanged, 1: squared, darker)."""
    return images.clamp_min(0) ** per_image(2**value)


def white_balance(images: Images, value: Values) -> Images:
    """Make warmer by `value` stops of red against blue (0: unchanged, negative: colder), clamped to [0, 1]."""
    gains = torch.stack([2 ** (value / 2), torch.ones_like(value), 2 ** (-value / 2)], dim=1)
    return (images * gains[:, :, None, None]).clamp_(0, 1)


def noise(images: Images, value: Values) -> Images:
    """Add Gaussian noise of standard deviation `value` to every pixel and channel, clamped to [0, 1].

    Its pattern is a pure function of `value`, like all randomness here: the same number gives the same noise on any
    device and in any batch.
    """
    key = _scramble(value.float().contiguous().view(torch.int32).long() & _WORD)
    cells = torch.arange(images[0].numel(), device=images.device).view(1, *images.shape[1:])
    word = _scramble(_scramble(key[:, None, None, None] ^ cells))
    # 23 bits and a half: single precision can hold them, and neither 0 nor 1 is among them.
    uniform = ((word >> 9).to(images.dtype) + 0.5) / 2**23
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    return torch.addcmul(images, normal, per_image(value)).clamp_(0, 1)


_WORD = 0xFFFFFFFF


def _scramble(word: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """A bijection of 32-bit words that leaves no trace of their order (multiply and xor-shift, twice)."""
    for _ in range(2):
        word = (((word >> 16) ^ word) * 0x45D9F3B) & _WORD
    return (word >> 16) ^ word


# Quantisation at quality 50 (ITU-T T.81, annex K) of luminance and chrominance.
_LUMINANCE = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]).float()  # fmt: skip
_CHROMINANCE = torch.full((8, 8), 99.0)
_CHROMINANCE[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]).float()
_TABLES = torch.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE])
# The orthonormal discrete cosine transform of 8 numbers, rows are frequencies.
_PLACES = torch.arange(8, dtype=torch.float64)
_DCT = torch.cos((2 * _PLACES[None] + 1) * _PLACES[:, None] * math.pi / 16) / 2
_DCT[0] /= math.sqrt(2)
_DCT = _DCT.float()
# RGB to luminance and two colour differences (JFIF).
_TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=torch.float64
)
_TO_RGB = torch.linalg.inv(_TO_YCC).float()
_TO_YCC = _TO_YCC.float()


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantisation tables, cosine transform and the two matrices of colour, where they are needed: copied once."""
    return _TABLES.to(device), _DCT.to(device), _TO_YCC.to(device), _TO_RGB.to(device)


def jpeg(images: Images, value: Values) -> Images:
    """What remains after a JPEG file of quality `value` (1 to 100, as libjpeg counts), colours at full resolution.

    Without the file: the entropy coding loses nothing, so only rounding, the transform and the quantisation are done.
    """
    height, width = images.shape[-2:]
    base, dct, to_ycc, to_rgb = _constants(images.device)
    quality = value.clamp(1, 100)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    tables = ((base * scale[:, None, None, None] + 50) / 100).floor().clamp_(1, 255)
    levels = torch.einsum("cr,brhw->bchw", to_ycc, images.mul(255).round_())
    levels[:, 0] -= 128  # the colour differences are centred already
    padded = F.pad(levels.round_(), (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    step = tables[:, :, None, None]
    kept = (dct @ blocks @ dct.T).div_(step).round_().mul_(step)
    back = (dct.T @ kept @ dct).round_().clamp_(-128, 127)
    levels = back.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width].clone()
    levels[:, 0] += 128
    return torch.einsum("rc,bchw->brhw", to_rgb, levels).round_().clamp_(0, 255).div_(255)


CAMERA = (
    Transformation(
        name="gamma", apply=gamma, graded=True, both=True,
        low=-0.7, high=0.7, neutral=0.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="white_balance", apply=white_balance, graded=True, both=True,
        low=-0.6, high=0.6, neutral=0.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="noise", apply=noise, graded=True, both=False, low=0.0, high=0.1, neutral=0.0, probability=0.3
    ),
    Transformation(
        name="jpeg", apply=jpeg, graded=True, both=False, low=10.0, high=100.0, neutral=100.0, probability=0.3
    ),
)  # fmt: skip
"""In the order they are applied: light and colour, then the sensor, then the file."""
