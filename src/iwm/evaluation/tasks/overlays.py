"""Segmented images: truth and prediction as colours laid over the image."""

import colorsys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.runtime.drawing import blank, put_picture, put_words
from iwm.runtime.errors import UserError

# ---- segmented images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    """One segmented image; classes below 0 are pixels that do not count."""

    image: UInt8[Tensor, "3 h w"]
    truth: Int64[np.ndarray, "h w"]
    predicted: Int64[np.ndarray, "h w"]


def class_colours(count: int) -> Float[np.ndarray, "{count} 3"]:
    """A colour for every class: those of Okabe and Ito first, then hues a golden angle apart in changing lightness."""
    known = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#5A3E2B"][:count]
    colours = [tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)) for code in known]
    for number in range(count - len(known)):
        colours.append(
            colorsys.hls_to_rgb(0.618034 * number % 1, (0.35, 0.55, 0.75)[number % 3], (0.9, 0.6)[number % 2])
        )
    return np.array(colours).reshape(count, 3)


def overlays(shown: Sequence[Overlay], classes: Sequence[str], most: int = 24) -> Figure:
    """Image, truth and prediction side by side, classes as colours laid over a grey image; where the two differ, in
    black. Below them a legend of the (at most `most`) classes that cover the most pixels here.

    Pixels that do not count are white in truth and in the last column. Raises UserError without images.
    """
    if not shown:
        raise UserError("There are no segmented images to draw; give at least one.")
    colours = class_colours(len(classes))
    covered = np.zeros(len(classes))
    for each in shown:
        for kinds in (each.truth, each.predicted):
            covered += np.bincount(kinds[kinds >= 0], minlength=len(classes))
    order = np.argsort(-covered, kind="stable")[: int((covered > 0).sum())]
    legend = np.sort(order[:most])
    tall = [each.image.shape[1] / each.image.shape[2] for each in shown]
    side, gap, margin, head, line = 2.3, 0.12, 0.14, 0.36, 0.22
    heights = [side * min(ratio, 2.0) for ratio in tall]
    columns, total = 4, 2 * margin + 4 * side + 3 * gap
    entries = [(colours[kind], classes[kind]) for kind in legend]
    entries += [(np.ones(3), "does not count")] if any((each.truth < 0).any() for each in shown) else []
    left_out = len(order) - len(legend)
    below = line * -(-len(entries) // columns) + (line if left_out else 0)
    figure = blank(total, head + sum(heights) + gap * len(shown) + below + 0.12)
    for number, name in enumerate(("image", "truth", "prediction", "mistakes (black)")):
        put_words(figure, name, margin + number * (side + gap), 0.1, 10, weight="bold")
    top = head
    for each, height in zip(shown, heights, strict=True):
        for number, panel in enumerate(_panels(each, colours)):
            put_picture(figure, panel, margin + number * (side + gap), top, side, height)
        top += height + gap
    step = (total - 2 * margin) / columns
    for number, (colour, name) in enumerate(entries):
        left, down = margin + number % columns * step, top + number // columns * line
        swatch = torch.from_numpy(colour)[:, None, None].expand(3, 2, 2)
        axes = put_picture(figure, swatch, left, down + 0.02, 0.15)
        axes.spines[:].set(visible=True, color="#888888", linewidth=0.6)
        put_words(figure, textwrap.shorten(str(name), 28, placeholder="..."), left + 0.22, down, 8.5)
    if left_out:
        put_words(figure, f"and {left_out} rarer classes", margin, top + line * -(-len(entries) // columns), 8.5)
    return figure


def _panels(each: Overlay, colours: Float[np.ndarray, "c 3"]) -> tuple[Tensor, ...]:
    """Image, truth, prediction, and mistakes in black."""
    wrong = (each.truth != each.predicted) & (each.truth >= 0)
    right = np.where(wrong[..., None], 0.0, 1.0).repeat(3, axis=2)
    right[~wrong & (each.truth >= 0)] = 0.82
    return (
        each.image,
        _coloured(each.image, each.truth, colours),
        _coloured(each.image, each.predicted, colours),
        torch.from_numpy(right).permute(2, 0, 1),
    )


def _coloured(
    image: UInt8[Tensor, "3 h w"], kinds: Int64[np.ndarray, "h w"], colours: Float[np.ndarray, "c 3"]
) -> Float[Tensor, "3 h w"]:
    """The colours of its classes, darker where the image is dark: mixed with grey, two blues would look alike."""
    grey = image.float().mean(dim=0).div(255).numpy()[..., None]
    painted = np.where((kinds < 0)[..., None], 1.0, colours[np.maximum(kinds, 0)] * (0.65 + 0.35 * grey))
    return torch.from_numpy(painted).permute(2, 0, 1)
