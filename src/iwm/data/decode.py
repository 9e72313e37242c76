"""Decode an image file to RGB bytes."""

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor


class BrokenImage(Exception):
    """One image that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode(data: bytes, name: str = "image", least: int = 0) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to upright RGB bytes. Raises BrokenImage.

    Where `least` is given, a JPEG may come at 1/2, 1/4 or 1/8 of its size, which is several times faster, as long as
    its shorter side keeps `least` pixels; one of less than twice `least` comes as it is.

    EXIF orientation is applied; transparency is laid on white; 16 bits become 8 by scaling; floats are taken as 0..1,
    or as 0..255 when one exceeds 1; of an animation the first frame counts.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if least:
                picture.draft(None, (least, least))
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = np.array(_rgb(picture))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise BrokenImage(name, reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def drafted_size(picture: Image.Image, least: int) -> tuple[int, int]:
    """Height and width as `decode` makes them with this `least`, from the opened file's header."""
    if least:
        picture.draft(None, (least, least))
    return picture.height, picture.width


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
