"""What the values of masks mean.

    class = place of the value among those that occur in training or validation masks, in rising order
    class = value                       where a classes.txt names more values than occur
    class = IGNORED                     where value = ignore index: neither learned nor counted

The ignore index 255 is a class where masks hold only one other value: 0 and 255 are background and foreground.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int16, Int32, Integer, Shaped
from PIL import Image
from torch import Tensor

from iwm.data.crops import IGNORED
from iwm.data.decode import BrokenImage, reason
from iwm.data.file_index import note
from iwm.runtime.console import console
from iwm.runtime.errors import UserError

Mask = Integer[np.ndarray, "h w"]
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "TGA", "PCX", "SGI", "QOI")
"""Pillow's names of the formats that a mask may have."""
MOST_UNNAMED = 200
"""Most values that are classes without names: soft edges have more."""


@runtime_checkable
class MaskSplit(Protocol):
    """The masks of one split."""

    name: str
    values: dict[int, int]
    """Pixels of every value that occurs."""

    def mask_with(self, value: int) -> str:
        """The path of a mask that holds a value."""
        ...


@dataclass(frozen=True)
class ValueTable:
    """The values that are classes, rising, with their names."""

    values: tuple[int, ...]
    names: tuple[str, ...]

    def classes_of(self, mask: Int32[Tensor, "h w"]) -> Int16[Tensor, "h w"]:
        """The class of every pixel; IGNORED for values that are none."""
        known = torch.tensor(self.values, dtype=torch.int32)
        places = torch.searchsorted(known, mask.contiguous()).clamp_(max=len(known) - 1)
        return torch.where(known[places] == mask, places, IGNORED).short()


def count_values(mask: Int32[np.ndarray, "h w"]) -> dict[int, int]:
    """Pixels of every value of a mask."""
    if mask.size and mask.max() < 2**16:
        counts = np.bincount(mask.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def decode_mask(data: bytes, name: str = "mask") -> Mask:
    """The values of a lossless mask: grey levels, or the indices of a palette; black and white are 0 and 255.

    Raises BrokenImage when it cannot be decoded, UserError when it may be blurred or is a colour picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, mode, values = picture.format, picture.mode, np.asarray(picture)
            compression = str(picture.info.get("compression", ""))
            palette = np.array(picture.getpalette() or [0, 0, 0], dtype=np.int64).reshape(-1, 3)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise BrokenImage(name, reason(error, data)) from error
    lossy = next((word for word in ("jpeg", "webp") if word in compression), "")
    if kind not in LOSSLESS or lossy:
        what = f"{kind} file ({lossy.upper()} inside)" if lossy else f"{kind} file"
        raise UserError(f"The mask {name} is a {what}, which may blur classes; save masks as PNG.")
    if mode in ("RGB", "RGBA", "LA"):
        values = _one_channel(values, mode, name)
    elif mode == "1":
        values = values.astype(np.int64) * 255
    elif mode == "P" and kind == "GIF":  # encoders of GIF number colours anew in every file
        if not (palette == palette[:, :1]).all():
            raise _colours(name, "GIF of colours")
        values = palette[:, 0][values]
    elif mode == "F" and not (values == np.round(values)).all():
        raise UserError(f"The mask {name} holds fractions; save whole numbers, the classes.")
    elif mode not in ("L", "P", "F") and not mode.startswith("I"):
        raise _colours(name, mode)
    return values.astype(np.int64)


def _one_channel(values: Shaped[np.ndarray, "h w c"], mode: str, name: str) -> Shaped[np.ndarray, "h w"]:
    """The grey values of a mask that is stored in colours, all of them grey and opaque alike."""
    colours, alpha = (values[..., :-1], values[..., -1]) if mode.endswith("A") else (values, np.zeros(1))
    if not (colours == colours[..., :1]).all() or (alpha != alpha.flat[0]).any():
        raise _colours(name, mode)
    return colours[..., 0]


def _colours(name: str, mode: str) -> UserError:
    return UserError(f"The mask {name} is a colour picture ({mode}); save the classes as grey or palette values.")


def value_table(names: tuple[str, ...] | None, train: MaskSplit, val: MaskSplit, ignore_index: int) -> ValueTable:
    """The classes of the masks' values, named by `names` or by themselves. Raises UserError for a value without a
    name, and for too many values to be classes."""
    occurring = sorted({*train.values, *val.values})
    others = [value for value in occurring if value != ignore_index]
    if ignore_index == 255 and 255 in train.values and len(others) == 1:
        note(train.name, f"the masks hold {others[0]} and 255 only, so 255 is a class and not ignored.")
        others, ignore_index = occurring, -1
    if share := train.values.get(ignore_index, 0) / sum(train.values.values()):
        note(
            train.name,
            f"{share:.1%} of the pixels of its training masks hold {ignore_index} and are neither learned nor counted; "
            "--ignore-index -1 makes it a class.",
        )
    if names is None:
        if len(others) > MOST_UNNAMED:
            raise UserError(
                f"The masks of '{train.name}' hold {len(others)} values, more than classes usually are: soft edges or "
                "photographs; store one whole number a class, or name them all in a classes.txt."
            )
        return ValueTable(tuple(others), tuple(map(str, others)))
    if not others or others[-1] < len(names):
        values = tuple(value for value in range(len(names)) if value != ignore_index)
        return ValueTable(values, tuple(names[value] for value in values))
    if len(others) == len(names):
        pairs = ", ".join(f"{value} {name}" for value, name in zip(others[:4], names, strict=False))
        note(train.name, f"classes are named in order of the masks' values: {pairs}{', ...' * (len(names) > 4)}.")
        return ValueTable(tuple(others), names)
    wrong = next(value for value in others if value >= len(names))
    holder = train if wrong in train.values else val
    raise UserError(
        f"The mask {holder.mask_with(wrong)} holds the value {wrong}, but there are {len(names)} classes, 0 to "
        f"{len(names) - 1}; correct the mask or the class names, or leave those pixels out with --ignore-index {wrong}."
    )


def require_pixels(table: ValueTable, train: MaskSplit, val: MaskSplit) -> None:
    """Raises UserError when the classes cannot be learned from training masks, or validation asks nothing."""
    pixels, val_pixels = (_pixels(table, part.values) for part in (train, val))
    classes = table.names
    if (pixels > 0).sum() < 2:
        only = "".join(f" ('{classes[number]}')" for number in np.flatnonzero(pixels))
        raise UserError(
            f"The training masks of '{train.name}' hold one class only{only}, beside the ignored value; two are "
            "needed. Check the masks, or give another --ignore-index (-1 for none)."
        )
    strange = np.flatnonzero((pixels == 0) & (val_pixels > 0))
    if len(strange):
        raise UserError(
            f"Training and validation masks of '{train.name}' have different classes: "
            f"{', '.join(repr(classes[number]) for number in strange[:5])} only in validation; add training images of "
            "it, or take it out of validation."
        )
    absent = np.flatnonzero(pixels == 0)
    if len(absent):
        raise UserError(
            f"Class '{classes[absent[0]]}' of '{train.name}' has no training image; add some, or number the classes "
            "without it."
        )
    if not val_pixels.any():
        raise UserError(
            f"Every pixel of the validation masks of '{val.name}' holds the ignored value; give masks with classes, or "
            "another --ignore-index."
        )
    unasked = np.flatnonzero(val_pixels == 0)
    if len(unasked):
        listed = ", ".join(classes[number] for number in unasked[:5]) + ", ..." * (len(unasked) > 5)
        console.print(f"{len(unasked)} of {len(classes)} classes occur in no validation mask: {listed}.")


def _pixels(table: ValueTable, values: Mapping[int, int]) -> np.ndarray:
    return np.array([values.get(value, 0) for value in table.values], dtype=np.int64)
