"""The images that the page holds: uploads as crops of the model's size, the oldest forgotten first; and PNG."""

import base64
import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from iwm.data.crops import center
from iwm.data.decode import BrokenImage, decode
from iwm.runtime.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is taken from a browser."""
TAKEN = "JPEG, PNG, WebP, GIF or BMP"
MOST_UNEQUAL = 50
"""Largest ratio of an uploaded image's sides."""
KEPT = 64 * 2**20
"""Bytes of uploaded crops that are held."""


@dataclass(frozen=True)
class Limits:
    """What is taken from a browser."""

    megabytes: int = 10
    megapixels: int = 24

    @property
    def bytes(self) -> int:
        return self.megabytes * 10**6

    @property
    def sentence(self) -> str:
        return f"{TAKEN}, up to {self.megabytes} MB and {self.megapixels} megapixels."

    def too_large(self) -> UserError:
        return UserError(f"The file is larger than {self.megabytes} MB; choose a smaller one.")


def read_upload(data: bytes, size: int, limits: Limits) -> UInt8[Tensor, "3 {size} {size}"]:
    """The middle of an image file from a browser, `size` pixels wide and high.

    Raises UserError for a file that is too large, of another kind or damaged, and for an image of too many pixels,
    which is known from its header before any pixel is decoded.
    """
    if len(data) > limits.bytes:
        raise limits.too_large()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise UserError(f"The image has far more than {limits.megapixels} megapixels; choose a smaller one.") from None
    except (Image.UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise UserError(f"The file is no image of a kind that is taken; choose {TAKEN}.") from None
    if width * height > limits.megapixels * 10**6:
        raise UserError(
            f"The image has {width} x {height} pixels, more than {limits.megapixels} megapixels; choose a smaller one."
        )
    if max(width, height) > MOST_UNEQUAL * min(width, height):
        raise UserError(f"The image has {width} x {height} pixels, too narrow to cut a square from; choose another.")
    try:
        return center(decode(data, "the image", size), size).contiguous()
    except BrokenImage as broken:
        raise UserError(f"The image cannot be decoded ({broken.reason}); save it again.") from None


@dataclass(frozen=True)
class Picture:
    """An image of the model's size, and where it is a changed one, by what action of which other."""

    pixels: UInt8[Tensor, "3 s s"]
    name: str = ""
    change: dict[str, float] | None = None
    of: str = ""
    """Key of the image that the change was made of."""


@dataclass
class Pictures:
    """Uploaded and changed images by the hash of their content; past `most_bytes` the longest unused are forgotten.

    Several threads may ask at once.
    """

    most_bytes: int = KEPT
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: "OrderedDict[str, Picture]" = field(default_factory=OrderedDict)

    def add(self, picture: Picture) -> str:
        """Hold an image; returns its key. The same pixels, changed from the same image, have the same key."""
        content = hashlib.sha256(picture.pixels.numpy().tobytes() + f"{picture.of} {picture.change}".encode())
        key = f"u{content.hexdigest()[:20]}"
        with self._lock:
            self._kept[key] = picture
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(one.pixels.numel() for one in self._kept.values()) > self.most_bytes:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Picture | None:
        """The image of that key; None where it was forgotten or never there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


def png(image: Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]) -> bytes:
    """An image, uint8 or float in [0, 1], as a PNG file."""
    if image.dtype != torch.uint8:
        image = image.float().nan_to_num().clamp(0, 1).mul(255).round().byte()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(file, "PNG", compress_level=1)
    return file.getvalue()


def data_uri(image: Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]) -> str:
    """An image as the text that an <img> takes."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def heat(values: Float[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """Colours from black (0) over red to pale yellow (1 and more)."""
    return torch.from_numpy(np.ascontiguousarray(colormaps["magma"](values.clamp(0, 1).numpy())[..., :3])).permute(
        2, 0, 1
    )
