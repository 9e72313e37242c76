"""Uploads are images of a usual kind and size, or a sentence; what is held stays within its bounds."""

import base64
import io
import struct
import zlib

import pytest
import torch
from PIL import Image

from iwm.page.pictures import Limits, Picture, Pictures, data_uri, heat, png, read_upload
from iwm.runtime.errors import UserError

LIMITS = Limits(megabytes=1, megapixels=2)


def file(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.new("L", size, 128).convert(mode).save(written, kind)
    return written.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG of that size that has no pixels: to decode it would fail, or take gigabytes."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + bytes(9)]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_usual_kinds_come_as_squares_of_the_models_size(kind: str) -> None:
    image = read_upload(file(kind), 16, LIMITS)
    assert image.shape == (3, 16, 16)
    assert (image.float() - 128).abs().max() <= 2


def test_transparency_lies_on_white() -> None:
    written = io.BytesIO()
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(written, "PNG")
    assert read_upload(written.getvalue(), 8, LIMITS).min() == 255


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no image of a kind"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "choose JPEG, PNG, WebP, GIF or BMP"),
        (file("TIFF"), "no image of a kind"),
        (bytes(1_000_001), "larger than 1 MB"),
        (header(2000, 1001), "2000 x 1001 pixels, more than 2 megapixels"),
        (header(12_000, 10_000), "more than 2 megapixels"),
        (header(60_000, 60_000), "more than 2 megapixels"),
        (header(30, 30), "cannot be decoded"),
        (file(size=(1000, 10)), "too narrow"),
        (file("JPEG", (300, 300))[:-400], "cannot be decoded"),
    ],
    ids=["empty", "svg", "tiff", "bytes", "pixels", "bomb", "larger bomb", "no pixels", "narrow", "cut"],
)
def test_what_is_not_taken_is_said_in_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        read_upload(data, 16, LIMITS)
    assert str(refusal.value).count(". ") == 0
    assert str(refusal.value).endswith(".")


def test_the_longest_unused_is_forgotten() -> None:
    held = Pictures(most_bytes=3 * 3 * 4 * 4)
    keys = [held.add(Picture(torch.full((3, 4, 4), number, dtype=torch.uint8))) for number in range(3)]
    assert held.get(keys[0]) is not None
    keys.append(held.add(Picture(torch.full((3, 4, 4), 9, dtype=torch.uint8))))
    assert [held.get(key) is not None for key in keys] == [True, False, True, True]


def test_the_same_pixels_have_the_same_key_and_others_another() -> None:
    held, image = Pictures(), torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert held.add(Picture(image, "a")) == held.add(Picture(image, "b"))
    assert held.add(Picture(image, change={"hue": 0.1}, of="f0")) != held.add(Picture(image))
    assert held.add(Picture(image + 1)) != held.add(Picture(image))


def test_pictures_come_back_from_png_as_they_were() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = base64.b64decode(data_uri(image.float() / 255).split(",")[1])
    assert content == png(image)
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.size, picture.mode) == ((7, 5), "RGB")
        assert picture.tobytes() == image.permute(1, 2, 0).numpy().tobytes()


def test_the_map_is_brighter_where_the_difference_is_larger() -> None:
    light = heat(torch.linspace(0, 2, 5)[None]).sum(0)[0]
    assert light.tolist() == sorted(light.tolist())
    assert light[2] == light[4], "1 and more look alike"
    assert light[0] < 0.1
