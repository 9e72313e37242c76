"""The range of grey values of more than 8 bits."""

import numpy as np
import pytest
from picture_files import encoded
from PIL import Image

from iwm.data.grey import GreyRange, GreyRanges, Survey, parse_range
from iwm.data.sources import open_images
from iwm.runtime.errors import UserError


def survey_of(*values: object, dtype: str) -> Survey:
    survey = Survey()
    for one in values:
        survey.add(Image.fromarray(np.array([one], dtype=dtype)), b"")
    return survey


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        ([0, 255], "uint16", (0, 255)),
        ([0, 256], "uint16", (0, 1023)),
        ([7, 1024], "uint16", (0, 4095)),
        ([0, 4096], "uint16", (0, 16383)),
        ([0, 16384], "uint16", (0, 65535)),
        ([0, 65536], "int32", (0, 65536)),
        ([-5, 10], "int32", (-5, 10)),
        ([0, 0.5], "float32", (0, 1)),
        ([0, 1.5], "float32", (0, 255)),
        ([0, 300], "float32", (0, 300)),
        ([-1, np.nan], "float32", (-1, -1)),
    ],
)
def test_black_and_white_of_what_a_source_holds(values, dtype, wanted):
    survey = survey_of(values, values[:1], dtype=dtype)
    ranges = survey.ranges()
    assert (ranges.floats if dtype == "float32" else ranges.integers) == wanted
    assert survey.without_number == any(value != value for value in values)


def test_bytes_are_linear_between_black_and_white():
    values = np.array([[-2000, -1000, 0, 1000, 3000, np.nan]])
    assert GreyRange(-1000, 1000).to_bytes(values).tolist() == [[0, 0, 128, 255, 255, 0]]
    assert GreyRange(3, 3).to_bytes(np.array([[3]])).tolist() == [[0]]


def test_the_file_of_a_range():
    assert parse_range(" 0\n4095 ", "f") == GreyRanges(GreyRange(0, 4095), GreyRange(0, 4095))
    for text in ("", "1", "a b", "5 5", "0 nan", "0 1 2"):
        with pytest.raises(UserError, match="f must hold two numbers"):
            parse_range(text, "f")


def test_colours_of_the_lower_bits_are_refused(tmp_path):
    """PNG of 16 bits a channel, all below 4096: Pillow would read them as 0 to 15."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for top, readable in ((4095, False), (65535, True)):
        rows = np.linspace(0, top, 4 * 4 * 3).astype(">u2").reshape(4, 12)
        lines = b"".join(b"\0" + row.tobytes() for row in rows)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
        png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        (tmp_path / "1.png").write_bytes(png)
        (tmp_path / "2.png").write_bytes(encoded(Image.new("RGB", (4, 4)), "PNG"))
        if readable:
            assert open_images(str(tmp_path), "all").load(0).max() == 255
        else:
            with pytest.raises(UserError, match=r"Colour images of 16 bits \(1 of 2 looked at\)"):
                open_images(str(tmp_path))
