"""Which grey value is black and which is white, for images of more than 8 bits: the same for a whole source.

    byte = 255 (value - black) / (white - black), clipped to 0..255, NaN as black

A file `grey_range.txt` in the source gives both numbers. Without one, up to 64 images of the source are looked at:

    whole numbers from 0    0 .. 2^k - 1 for the smallest k of 8, 10, 12, 14, 16 that holds the largest value
    floats within 0..1      0 .. 1;  within 0..255: 0 .. 255
    anything else           the smallest .. the largest value (Hounsfield units, say)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from iwm.runtime.errors import UserError

FILE = "grey_range.txt"
LOOKED_AT = 64
"""Images of a source that are looked at."""
DEPTHS = (8, 10, 12, 14, 16)
DEEP = (
    *(".png", ".apng", ".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".pgm", ".pnm", ".ppm", ".pfm"),
)
"""Types that may have more than 8 bits a value."""
FRAMES = (".gif", ".tif", ".tiff", ".webp", ".avif")
"""Types that may have several frames or pages."""


class GreyRange(NamedTuple):
    """The values that become black and white."""

    black: float
    white: float

    def to_bytes(self, values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Grey values as bytes."""
        scale = 255 / ((self.white - self.black) or 1)
        scaled = (np.nan_to_num(values.astype(np.float64), nan=self.black) - self.black) * scale
        return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)


SIXTEEN_BITS, FRACTIONS = GreyRange(0, 65535), GreyRange(0, 1)


@dataclass(frozen=True)
class GreyRanges:
    """Of a source's images of whole numbers and of those of floats."""

    integers: GreyRange = SIXTEEN_BITS
    floats: GreyRange = FRACTIONS

    def of(self, mode: str) -> GreyRange:
        """The range for images of a Pillow mode."""
        return self.floats if mode == "F" else self.integers


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has one channel of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def parse_range(text: str, where: Path | str) -> GreyRanges:
    """The two numbers of a `grey_range.txt`. Raises UserError."""
    try:
        black, white = map(float, text.split())
        if not white > black or not np.isfinite([black, white]).all():
            raise ValueError
    except ValueError:
        raise UserError(
            f"{where} must hold two numbers, the value that is black and a larger one that is white, e.g. 0 4095."
        ) from None
    return GreyRanges(GreyRange(black, white), GreyRange(black, white))


@dataclass
class Survey:
    """What up to LOOKED_AT images of a source hold."""

    low: dict[str, float] = field(default_factory=dict)
    """Smallest value by kind, "F" or "I"."""
    high: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0
    with_frames: int = 0
    deep_colour: int = 0
    """Colour images of 16 bits a channel, of which Pillow reads the upper 8."""
    brightest_colour: int = 0
    """Largest byte among those."""
    without_number: bool = False

    def add(self, picture: Image.Image, head: bytes) -> None:
        """Look at one image; `head` are the first bytes of its file."""
        self.looked_at += 1
        self.with_frames += picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
        if is_deep(picture.mode):
            kind = "F" if picture.mode == "F" else "I"
            values = np.asarray(picture)
            finite = values[np.isfinite(values)] if kind == "F" else values
            self.without_number |= finite.size < values.size
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if finite.size:
                self.low[kind] = min(self.low.get(kind, np.inf), float(finite.min()))
                self.high[kind] = max(self.high.get(kind, -np.inf), float(finite.max()))
        elif picture.mode in ("RGB", "RGBA") and _channel_bits(picture, head) > 8:
            self.deep_colour += 1
            self.brightest_colour = max(self.brightest_colour, int(np.asarray(picture)[..., :3].max()))

    def range_of(self, kind: str) -> GreyRange | None:
        """The range for "F" or "I"; None where the survey saw no such image."""
        if kind not in self.low:
            return None
        low, high = self.low[kind], self.high[kind]
        tops = [2**depth - 1 for depth in DEPTHS] if kind == "I" else [1, 255]
        top = next((top for top in tops if high <= top), None)
        return GreyRange(low, high) if low < 0 or top is None else GreyRange(0, top)

    def ranges(self) -> GreyRanges:
        usual = GreyRanges()
        return GreyRanges(self.range_of("I") or usual.integers, self.range_of("F") or usual.floats)

    def notes(self) -> list[str]:
        """Sentences for the user. Raises UserError for colours that would be read as black."""
        sentences = []
        if self.with_frames:
            sentences.append(
                f"{self.with_frames} of {self.looked_at} images looked at have several frames or pages; of each image "
                "the first is read and the others are left out."
            )
        for kind in ("I", "F"):
            values = self.range_of(kind)
            if values in (None, SIXTEEN_BITS if kind == "I" else FRACTIONS):
                continue
            seen_in = f"seen in {self.counts[kind]} image{'s' if self.counts[kind] > 1 else ''}"
            sentences.append(
                f"grey values from {values.black:,g} to {values.white:,g} ({seen_in}) become black to white; other "
                f"numbers can stand in a file {FILE}."
            )
        if self.without_number:
            sentences.append("pixels without a number (NaN) become black.")
        if self.deep_colour and self.brightest_colour < 64:
            raise UserError(
                f"Colour images of 16 bits ({self.deep_colour} of {self.looked_at} looked at) use the lower bits only "
                "and would be read as almost black; save them with 8 bits a channel, or scaled to 0..65535."
            )
        return sentences


def _channel_bits(picture: Image.Image, head: bytes) -> int:
    """Bits of each channel in the file of a colour image, as far as PNG and TIFF say so."""
    if picture.format == "PNG":
        return head[24]
    tags: Any = getattr(picture, "tag_v2", {})
    bits: Sequence[int] = tags.get(258, (8,))
    return max(bits)
