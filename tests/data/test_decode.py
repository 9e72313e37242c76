"""Decoding of every format."""

import numpy as np
import pytest
import torch
from picture_files import ORANGE, encoded
from PIL import Image

from iwm.data.decode import BrokenImage, decode


def of_array(values: object, kind: str, dtype: str, **options: object) -> bytes:
    return encoded(Image.fromarray(np.full((4, 6), values, dtype=dtype)), kind, **options)


def palette(transparent: bool) -> bytes:
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, *ORANGE])
    return encoded(picture, "PNG", **({"transparency": 1} if transparent else {}))


def animation() -> bytes:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (ORANGE, (0, 0, 255))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        *((encoded(Image.new("RGB", (6, 4), ORANGE), kind), ORANGE) for kind in ("PNG", "BMP", "TIFF", "PPM", "GIF")),
        (encoded(Image.new("RGB", (6, 4), ORANGE), "WEBP", lossless=True), ORANGE),
        (encoded(Image.new("L", (6, 4), 77), "PNG"), (77, 77, 77)),
        (encoded(Image.new("1", (6, 4), 1), "PNG"), (255, 255, 255)),
        (encoded(Image.new("LA", (6, 4), (0, 51)), "PNG"), (204, 204, 204)),
        (encoded(Image.new("RGBA", (6, 4), (*ORANGE, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (6, 4), (200, 100, 50, 51)), "WEBP", lossless=True), (244, 224, 214)),
        (palette(transparent=False), ORANGE),
        (palette(transparent=True), (255, 255, 255)),
        (encoded(Image.new("RGB", (6, 4), ORANGE), "PNG", transparency=ORANGE), (255, 255, 255)),
        (animation(), ORANGE),
        (of_array(128 * 257, "PNG", "uint16"), (128, 128, 128)),
        (of_array(65535, "TIFF", "uint16"), (255, 255, 255)),
        (of_array(1000, "TIFF", "uint16"), (4, 4, 4)),
        (of_array(0.5, "TIFF", "float32"), (128, 128, 128)),
        (of_array(200, "TIFF", "float32"), (200, 200, 200)),
        (encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    ],
)
def test_every_format_becomes_rgb_bytes(data, colour):
    image = decode(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    expected = torch.tensor(colour)[:, None, None]
    assert (image.int() - expected).abs().max() <= 1


def test_cmyk_and_grey_jpeg():
    red = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))[:, 8, 8]
    assert red[0] > 240
    assert red[1:].max() < 15
    assert (decode(encoded(Image.new("L", (16, 16), 90), "JPEG"))[:, 8, 8].int() - 90).abs().max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind):
    stored = Image.new("RGB", (24, 16), "black")
    stored.paste("white", (0, 0, 12, 16))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: left becomes top
    image = decode(encoded(stored, kind, exif=exif))
    assert image.shape == (3, 24, 16)
    assert image[:, :9].min() > 240
    assert image[:, 15:].max() < 15


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(Image.new("RGB", (64, 64), ORANGE), "PNG")[:60],
        encoded(Image.effect_noise((64, 64), 80), "JPEG")[:400],
        of_array(1e6, "TIFF", "float32"),
        of_array(np.nan, "TIFF", "float32"),
        of_array(-5, "TIFF", "int32"),
    ],
)
def test_what_cannot_be_decoded_is_broken(data):
    with pytest.raises(BrokenImage, match=r"holiday\.png: ."):
        decode(data, "holiday.png")
