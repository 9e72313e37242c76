"""Decode an image file to RGB bytes."""

import io
import struct

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from iwm.data.grey import GreyRange, GreyRanges, is_deep
from iwm.runtime import devices
from iwm.runtime.errors import UserError

Image.MAX_IMAGE_PIXELS = None  # a slide of 200 megapixels is no attack: what memory allows is read (`_require_room`)
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # colour profiles of several megabytes are common
PngImagePlugin.MAX_TEXT_MEMORY = 2**28
LARGE = 2**26
"""Pixels from which memory is asked before decoding."""
BYTES = 12
"""Of memory for a pixel while it is decoded, squared and kept."""


class NothingReadable(UserError):
    """Not one image of a set can be decoded."""


class BrokenImage(Exception):
    """One image that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode(
    data: bytes, name: str = "image", least: int = 0, ranges: GreyRanges | None = None
) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to upright RGB bytes. Raises BrokenImage.

    Where `least` is given, a JPEG may come at 1/2, 1/4 or 1/8 of its size, which is several times faster, as long as
    its shorter side keeps `least` pixels; one of less than twice `least` comes as it is.

    EXIF orientation is applied; transparency is laid on white; of an animation the first frame counts. Grey values of
    more than 8 bits are scaled by `ranges` (a source's own, see `iwm.data.grey`); without, whole numbers are taken as
    0..65535 and floats as 0..1, or as 0..255 when one exceeds 1, and other values are broken.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if least:
                picture.draft(None, (least, least))
            _require_room(picture)
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = np.array(rgb(picture, ranges))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise BrokenImage(name, reason(error, data)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def drafted_size(picture: Image.Image, least: int) -> tuple[int, int]:
    """Height and width as `decode` makes them with this `least`, from the opened file's header."""
    if least:
        picture.draft(None, (least, least))
    return picture.height, picture.width


def _require_room(picture: Image.Image) -> None:
    pixels = picture.width * picture.height
    if pixels > LARGE and pixels * BYTES > (free := devices.free_memory()):
        raise ValueError(
            f"{picture.width} x {picture.height} px need {pixels * BYTES / 2**30:.1f} GB of memory and "
            f"{free / 2**30:.1f} GB are free; cut it into tiles or scale it down"
        )


def rgb(picture: Image.Image, ranges: GreyRanges | None = None) -> Image.Image:
    """The picture in RGB: transparency on white, grey values of more than 8 bits by their ranges."""
    if is_deep(picture.mode):
        values = np.asarray(picture)
        if ranges is None:
            _require_usual(values, picture.mode)
            ranges = GreyRanges(floats=GreyRange(0, 1 if values.max() <= 1 else 255))
        return Image.fromarray(ranges.of(picture.mode).to_bytes(values)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        # Pillow knows the way from La only over LA.
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _require_usual(values: Shaped[np.ndarray, "h w"], mode: str) -> None:
    low, high = values.min(), values.max()
    top = 65535 if mode.startswith("I") else 1 if high <= 1 else 255
    if not (low >= 0 and high <= top):  # also when there are NaNs
        raise ValueError(f"grey values from {low:g} to {high:g}, where 0 to {top:g} is understood")


def reason(error: BaseException, data: bytes = b"") -> str:
    """What went wrong, for BrokenImage and for sentences; `data` is the file."""
    if isinstance(error, Image.UnidentifiedImageError):
        channels = _tiff_channels(data)
        if channels:
            return f"a TIFF of {channels} channels of a kind that is not read; save 1 or 3 of them as a TIFF or PNG"
        return "not an image"
    return str(error) or type(error).__name__


def _tiff_channels(data: bytes) -> int:
    """Samples a pixel of a TIFF file (tag 277), 0 for what is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for number in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, start + 2 + 12 * number)
            if tag == 277:
                return value
    except struct.error:
        return 0
    return 1
