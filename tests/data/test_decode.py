"""Decoding of every format."""

import io
import struct

import numpy as np
import pytest
import torch
from picture_files import ORANGE, encoded
from PIL import Image, ImageCms

from iwm.data.crops import center, crop_boxes, least_side, random_crop
from iwm.data.decode import BrokenImage, decode
from iwm.runtime import devices


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


def photo(height: int, width: int) -> bytes:
    """A JPEG of smooth colours with some grain."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(64, 192, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = generator.normal(0, 4, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "least", "shape"),
    [
        (1200, 1600, 0, (1200, 1600)),
        (1200, 1600, 601, (1200, 1600)),
        (1200, 1600, 600, (600, 800)),
        (1200, 1600, 299, (300, 400)),
        (1200, 1600, 100, (150, 200)),
        (1600, 1200, 301, (800, 600)),
        (90, 120, 64, (90, 120)),
        (50, 50, 224, (50, 50)),
    ],
)
def test_a_large_jpeg_is_scaled_while_decoding_and_never_below_what_is_needed(height, width, least, shape):
    data = photo(height, width)
    image = decode(data, least=least)
    assert tuple(image.shape[1:]) == shape
    if shape == (height, width):
        assert torch.equal(image, decode(data)), "as it is, to the byte"


@pytest.mark.parametrize(("size", "least"), [(64, 64), (224, 224), (64, 135)])
def test_a_scaled_photo_gives_nearly_the_same_picture(size, least):
    """In levels of 255: at most 1 on average and 8 anywhere."""
    data = photo(1500, 2000)
    difference = (center(decode(data, least=least), size).float() - center(decode(data), size).float()).abs()
    assert decode(data, least=least).shape != decode(data).shape
    assert float(difference.mean()) < 1
    assert float(difference.max()) < 8


def test_crops_of_a_scaled_photo_are_the_same_but_for_a_fraction_of_a_pixel():
    """Levels of 255: 4 on average, as boxes stand on whole pixels of the smaller photo; a box that just fits
    the one and not the other is another draw, one crop in ten at most. None is enlarged for it."""
    data, area = photo(1500, 2000), (0.3, 1.0)
    least = least_side(64, area)
    small, large = decode(data, least=least), decode(data)
    assert small.shape[1] < large.shape[1]
    differences = []
    for step in range(100):
        ours, theirs = (random_crop(image, 64, area, 0.5, 0, step, 3).float() for image in (small, large))
        differences.append(float((ours - theirs).abs().mean()))
        heights, widths = (np.array([side]) for side in small.shape[1:])
        boxes, _ = crop_boxes(heights, widths, area, 0.5, 0, step, np.array([3]))
        assert boxes[0, 2:].min() >= 64
    assert float(np.quantile(differences, 0.9)) < 4


def tiff_of(channels: int) -> bytes:
    """A TIFF of 2 x 2 px with that many channels of 8 bits, without compression."""
    pixels = bytes(range(4 * channels))
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, channels), (278, 3, 1, 2), (279, 4, 1, len(pixels))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def test_images_of_many_channels_are_refused_by_name():
    assert decode(tiff_of(1)).shape == (3, 2, 2)
    for channels in (5, 8, 13):
        with pytest.raises(BrokenImage, match=f"a TIFF of {channels} channels .*; save 1 or 3 of them"):
            decode(tiff_of(channels), "scene.tif")


def test_large_images_are_read_where_memory_allows(monkeypatch):
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")  # more than Pillow's own limit
    monkeypatch.setattr(devices, "free_memory", lambda: 2**30)
    with pytest.raises(BrokenImage, match=r"20000 x 10000 px need 2\.2 GB of memory and 1\.0 GB are free"):
        decode(data)
    monkeypatch.setattr(Image.Image, "convert", lambda picture, mode: Image.new("RGB", (2, 1)))
    monkeypatch.setattr(devices, "free_memory", lambda: 2**33)
    assert decode(data).shape == (3, 1, 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_large_colour_profile_is_no_obstacle(kind):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(3 * 2**20)
    assert decode(encoded(Image.new("RGB", (6, 4), ORANGE), kind, icc_profile=profile)).shape == (3, 4, 6)
