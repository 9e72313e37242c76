"""Decoded images that live on the device: crops of a whole batch are made there at once, without a wait of the host.

All images lie one after the other in one flat tensor of bytes, so any mix of sizes will do. A crop is the one of
`iwm.data.crops.random_crops`: the same box, the same antialiased bicubic filter (Keys 1981, a = -0.5, as Pillow and
PyTorch have it), first along the rows, then along the columns, rounded to bytes after each. As matrix products:

    crop = round(A_rows round(box A_columns^T)),   A[i, j] = k((j + 1/2 - c_i) / s) / sum_j,   s = max(1, box / size)

with A rounded as PyTorch does where it resizes bytes. What is left is the rounding of sums: 1 of 255 at single pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from iwm.data.crops import crop_boxes
from iwm.data.decode import BrokenImage
from iwm.runtime import devices
from iwm.runtime.algebra import joined
from iwm.runtime.devices import upload
from iwm.runtime.errors import UserError

SHARE = 2
"""Images may take one part of so many of what is free on the device: the model and its batch need the rest."""
AT_ONCE = 2**25
"""Most pixels of boxes that are cut out at once: 128 MiB as numbers, twice that as places."""
STEP = 16
"""Boxes are padded to a multiple of so many pixels: sizes then recur, and the device's memory is used again."""


def require_room(name: str, needed: int, device: torch.device) -> None:
    """Raises UserError where images of so many bytes do not fit on the device."""
    on_host = device.type != "cuda"
    free = devices.free_memory() if on_host else torch.cuda.mem_get_info(device)[0]
    # On a CPU the decoded images and their copy lie side by side for a while.
    share, words = (2 * SHARE, "a quarter") if on_host else (SHARE, "half")
    for where, room in ((f"the device {device}", free), ("the host, which decodes them,", devices.free_memory())):
        if needed > room // share:
            raise UserError(
                f"The decoded images of '{name}' take about {needed / 1e9:.3g} GB, more than {words} of the "
                f"{room / 1e9:.3g} GB that {where} has free; give --speed.cache memory or stream."
            )


class ResidentImages:
    """Decoded images on a device, cropped there."""

    def __init__(self, images: Sequence[UInt8[Tensor, "3 _h _w"] | BrokenImage], device: torch.device) -> None:
        whole = [image for image in images if isinstance(image, Tensor)]
        self.device = device
        self.whole = np.flatnonzero([isinstance(image, Tensor) for image in images])
        """Numbers of the images that could be decoded."""
        self.sides = np.array([image.shape[1:] for image in whole], dtype=np.int64).reshape(-1, 2)
        ends = np.cumsum(3 * self.sides.prod(axis=1))
        self.starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
        self.pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        for first in range(0, len(whole), 1024):
            part = torch.cat([image.reshape(-1) for image in whole[first : first + 1024]])
            self.pixels[int(self.starts[first]) :][: len(part)] = part.to(device)

    def next_whole(self, indices: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Each of these images, or where it is broken the next that is not."""
        places = np.searchsorted(self.whole, indices)
        return self.whole[places % len(self.whole)]

    def crops(
        self,
        size: int,
        area: tuple[float, float],
        flip: float,
        seed: int,
        step: int,
        indices: Int64[np.ndarray, " b"],
        purpose: str = "crop",
    ) -> UInt8[Tensor, "b 3 {size} {size}"]:
        """`random_crops` of these images, which must be whole."""
        rows = np.searchsorted(self.whole, indices)
        heights, widths = self.sides[rows].T
        boxes, mirrored = crop_boxes(heights, widths, area, flip, seed, step, indices, purpose)
        tall, wide = (int(-(-side // STEP) * STEP) for side in boxes[:, 2:].max(axis=0))
        first = self.starts[rows] + boxes[:, 0] * widths + boxes[:, 1]
        table = np.stack([first, heights * widths, widths, *boxes[:, 2:].T, mirrored.astype(np.int64)])
        parts = upload(torch.from_numpy(table), self.device).split(max(1, AT_ONCE // (3 * tall * wide)), dim=1)
        return joined([self._crops(part, tall, wide, size) for part in parts])

    def _crops(self, table: Int64[Tensor, "6 b"], tall: int, wide: int, size: int) -> UInt8[Tensor, "b 3 s s"]:
        first, channel, line, height, width = (row[:, None, None, None] for row in table[:5])
        place = torch.arange(3, device=self.device)[:, None, None] * channel + first
        # What lies beyond a box is its last line or column, whose weight there is 0.
        place = place + torch.arange(tall, device=self.device)[:, None].minimum(height - 1) * line
        place = place + torch.arange(wide, device=self.device).minimum(width - 1)
        boxes = self.pixels[place].float()
        columns = bicubic_weights(table[4], wide, size, table[5].bool())
        rows = bicubic_weights(table[3], tall, size, torch.zeros_like(table[5], dtype=torch.bool))
        narrow = _bytes(boxes.flatten(1, 2) @ columns.mT).unflatten(1, (3, tall))
        return _bytes(rows[:, None] @ narrow).to(torch.uint8)


def bicubic_weights(
    sides: Int64[Tensor, " b"], longest: int, size: int, mirrored: Bool[Tensor, " b"]
) -> Float[Tensor, "b {size} {longest}"]:
    """What each of `size` pixels takes of each of a side's pixels, antialiased; 0 beyond the side."""
    device = sides.device
    output = torch.arange(size, device=device)
    output = torch.where(mirrored[:, None], size - 1 - output, output)
    # The centre (i + 1/2) side / size in whole pixels and the rest, which keeps float32 exact where it matters.
    whole = (2 * output + 1) * sides[:, None]
    centre, rest = whole // (2 * size), (whole % (2 * size)).float() / (2 * size)
    place = torch.arange(longest, device=device)
    distance = (place - centre[:, :, None]).float() + (0.5 - rest)[:, :, None]
    x = (distance / (sides.float() / size).clamp_min(1)[:, None, None]).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0)) * (place < sides[:, None])[:, None]
    weights = weights / weights.sum(dim=2, keepdim=True)
    # As many binary places as let the largest one of a side be a whole number of 15 bits.
    unit = (32767.5 / weights.amax(dim=(1, 2), keepdim=True)).log2().floor().clamp(0, 22).exp2()
    return (weights.abs() * unit + 0.5).floor() / unit * weights.sign()


def _bytes(values: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Rounded to whole numbers from 0 to 255."""
    return values.add_(0.5).floor_().clamp_(0, 255)
