"""What masks hold, and what their values mean."""

import io

import numpy as np
import pytest
import torch
from picture_files import encoded
from PIL import Image

from iwm.data.crops import IGNORED
from iwm.data.decode import BrokenImage
from iwm.data.mask_values import ValueTable, count_values, decode_mask
from iwm.runtime.errors import UserError

VALUES = np.array([[0, 0, 255], [255, 0, 0]], dtype=np.uint8)
GREY = Image.fromarray(VALUES)


def deflated_by_jpeg() -> bytes:
    file = io.BytesIO()
    GREY.convert("RGB").save(file, "TIFF", compression="jpeg")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(GREY, kind) for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM")),
        encoded(GREY, "TIFF", compression="tiff_lzw"),
        *(encoded(GREY.convert(mode), "PNG") for mode in ("1", "RGB", "RGBA", "LA")),
        encoded(Image.fromarray(VALUES.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray(VALUES.astype(np.float32)), "TIFF"),
    ],
)
def test_lossless_masks_keep_their_values(data):
    assert decode_mask(data).tolist() == VALUES.tolist()


def test_a_palette_gives_its_numbers():
    mask = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "L").convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert decode_mask(encoded(mask, "PNG")).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (encoded(GREY, "JPEG"), "is a JPEG file, which may blur classes"),
        (encoded(GREY, "WEBP"), "is a WEBP file"),
        (deflated_by_jpeg(), r"is a TIFF file \(JPEG inside\)"),
        (encoded(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG"), r"is a colour picture \(RGB\)"),
        (encoded(Image.new("RGB", (3, 2), (1, 2, 3)).quantize(4), "GIF"), "GIF of colours"),
        (encoded(Image.fromarray(np.full((2, 3), 0.5, np.float32)), "TIFF"), "holds fractions"),
    ],
)
def test_what_is_no_mask_is_said(data, sentence):
    with pytest.raises(UserError, match=sentence):
        decode_mask(data)
    with pytest.raises(BrokenImage):
        decode_mask(b"no")


def test_values_become_places():
    table = ValueTable((0, 7, 255), ("a", "b", "c"))
    assert table.classes_of(torch.tensor([[0, 7, 255], [3, 300, -1]], dtype=torch.int32)).tolist() == [
        [0, 1, 2],
        [IGNORED] * 3,
    ]
    assert count_values(np.array([[0, 70000], [70000, 5]], dtype=np.int32)) == {0: 1, 5: 1, 70000: 2}
    assert count_values(np.array([[0, 7], [7, 5]], dtype=np.int32)) == {0: 1, 5: 1, 7: 2}
