"""The gallery of a run: crops, source and target views, and masks, as one figure."""

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.views import Views
from iwm.model.masks import Masks
from iwm.model.vit import Grid
from iwm.runtime.drawing import blank, put_picture, put_words
from iwm.runtime.errors import UserError


def _veil(axes: Axes, image: Tensor, hidden: Bool[np.ndarray, " n"], grid: Grid, *, hatched: bool) -> None:
    """Cover patches of an image: hatched grey where nothing is seen, a pale haze where nothing is asked."""
    high, wide = image.shape[1] / grid[0], image.shape[2] / grid[1]
    places = [(place % grid[1] * wide, place // grid[1] * high) for place in np.flatnonzero(hidden)]
    covers = [Rectangle(place, wide, high) for place in places]
    if hatched:
        style = {"facecolor": "#C9C9C9", "edgecolor": "#8F8F8F", "hatch": "//////", "linewidth": 0.0}
    else:
        style = {"facecolor": (0.9, 0.9, 0.9, 0.88), "edgecolor": "none", "linewidth": 0.0}
    # Neighbouring patches share an edge; smoothing it would draw the grid as hairlines.
    axes.add_collection(PatchCollection(covers, antialiased=False, **style))


# ---- gallery -------------------------------------------------------------------------------------------------------


TWO_VIEWS = ("crop", "first view", "second view")
"""Columns of the gallery of a joint embedding."""


def gallery(
    crops: UInt8[Tensor, "b 3 h w"], views: Views, masks: Masks, space: ActionSpace, grid: Grid, count: int = 5
) -> Figure:
    """What training works on, for the first `count` images of a batch, with the action in words under each.

    From left to right: the crop; the source; what the student sees of it (dropped patches hatched); the target; the
    target's patches that are predicted. Of a joint embedding, which predicts nothing: the crop and both views. `grid`
    is the patch grid (height, width). Raises UserError without images.
    """
    count = min(count, len(crops))
    if count < 1:
        raise UserError("There are no images for the gallery; give a batch of at least one.")
    side, gap, margin, head, caption = 1.85, 0.14, 0.12, 0.36, 0.36
    row = side + caption
    patches = grid[0] * grid[1]
    asks = masks.predicted.shape[1] > 0
    columns = ("crop", "source", "what the student sees", "target", "predicted patches") if asks else TWO_VIEWS
    width = len(columns) * (side + gap) - gap
    figure = blank(2 * margin + width, head + count * row + 0.02)
    for number, name in enumerate(columns):
        put_words(figure, name, margin + number * (side + gap), 0.1, 10, weight="bold")
    for index in range(count):
        top = head + index * row
        dropped = _absent(masks.context[index], patches)
        unasked = _absent(masks.predicted[index], patches)
        source, target = views.source[index], views.target[index]
        shown = (crops[index], source, source, target, target) if asks else (crops[index], source, target)
        for number, image in enumerate(shown):
            axes = put_picture(figure, image, margin + number * (side + gap), top, side)
            if number == 2 and asks:
                _veil(axes, image, dropped, grid, hatched=True)
            elif number == 4:
                _veil(axes, image, unasked, grid, hatched=False)
        below = top + side + 0.06
        if not asks:
            put_words(figure, "To be embedded alike; nothing is masked or predicted", margin, below, 9)
            continue
        action = space.describe(views.action[index].detach().cpu())
        context, queries = patches - int(dropped.sum()), patches - int(unasked.sum())
        put_words(figure, f"Action: {action}", margin, below, 9)
        put_words(
            figure,
            f"{context} of {patches} seen, {queries} predicted",
            margin + width,
            below,
            9,
            ha="right",
            color="#555555",
        )
    return figure


def _absent(positions: Int64[Tensor, " c"], patches: int) -> Bool[np.ndarray, " n"]:
    """Which patches are not among the positions."""
    absent = np.ones(patches, dtype=bool)
    absent[positions.cpu().numpy()] = False
    return absent
