"""Retrieval strips (paper figure 1, appendix J): what of a bank is nearest to what the world model imagined."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions import action_space
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import algebra
from iwm.runtime.drawing import GREEN, GREY, ORANGE, blank, put_picture, put_words
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import uniforms


@dataclass(frozen=True)
class StripRow:
    """One question to the world model: which image of the bank is nearest to what it imagined?"""

    source: Float[Tensor, "3 h w"]
    action: str
    """In words."""
    nearest: Float[Tensor, "3 h w"]
    truth: Float[Tensor, "3 h w"]
    rank: float
    """Of the truth in the bank, from 1; ties count half."""
    bank: int

    @property
    def right(self) -> bool:
        """Whether the truth itself is nearest, and nothing else ties with it."""
        return self.rank == 1


def source_only(space: ActionSpace) -> list[int]:
    """Places of the transformations that a source may carry and a target does not: what an action can undo."""
    return [p for p, t in enumerate(space.transformations) if not (t.graded and t.both) and t.probability > 0]


@torch.no_grad()
def strip_rows(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int, bank: int = 256) -> list[StripRow]:
    """Ask the model for one change of each image, then to undo each transformation of the source it was trained on.

    A change is one entry, drawn by `seed`, of the very bank that `mrr.rank_image` ranks for the image at this place of
    the batch. To undo: the source is the image jittered and, say, solarized, the truth is the clean image, and the
    others in the bank are jittered versions of it. Give the few images that are to be shown: every row costs one bank.
    """
    space, bank_space = model.space, action_space.reference_space(model.space, model.settings.data.image_size)
    chosen = (uniforms(seed, "strip entry", 0, np.arange(len(images)), 1)[:, 0] * bank).astype(int)
    rows = []
    for index, entry in enumerate(chosen):
        clean = images[index][None].to(model.device).float() / 255
        parameters = bank_space.sample_bank(seed, index, bank)
        entries = bank_space.apply(clean.expand(bank, -1, -1, -1), parameters)
        action = space.difference(space.neutral(1), parameters[entry : entry + 1])
        rows += ask(model, clean, action, entries, [int(entry)])
    for number, position in enumerate(source_only(space) if len(images) else ()):
        index = number % len(images)
        clean = images[index][None].to(model.device).float() / 255
        # One draw more than are asked for: the last one is the source's own jitter.
        parameters = bank_space.sample_bank(seed, index, bank)
        others = bank_space.apply(clean.expand(bank - 1, -1, -1, -1), parameters[:-1])
        carried = _carrying(parameters[-1:], position, space)
        action = space.difference(carried, space.neutral(1))
        rows += ask(model, space.apply(clean, carried), action, torch.cat([clean, others]), [0])
    return rows


def _carrying(jitter: Parameters, position: int, space: ActionSpace) -> Parameters:
    """The jitter with one transformation of the source on top, at its strongest so that it can be seen."""
    values, applied = jitter.values.clone(), jitter.applied.clone()
    values[:, position] = space.transformations[position].strongest
    applied[:, position] = True
    return Parameters(values, applied)


@torch.no_grad()
def ask(
    model: ImageWorldModel,
    source: Float[Tensor, "1 3 s s"],
    actions: Float[Tensor, "q k"],
    entries: Float[Tensor, "b 3 s s"],
    truths: Sequence[int],
) -> list[StripRow]:
    """Predict every action on one source, and rank the bank by distance to the prediction over all tokens, as the mean
    reciprocal rank does; `truths` are the right entries."""
    targets = torch.cat([model.target(part).values.float() for part in entries.split(64)])
    tokens, actions = model.encode(source), actions.to(model.device)
    expanded = Tokens(tokens.values.expand(len(actions), -1, -1), tokens.grid)
    distances = algebra.squared_distances(model.predict(expanded, actions).values.float(), targets)
    rows = []
    for action, near, truth in zip(actions, distances, truths, strict=True):
        rank = algebra.ranks(near.expand(len(entries), -1))[truth]
        nearest, words = int(near.argmin()), model.space.describe(action.cpu())
        rows.append(
            StripRow(source[0].cpu(), words, entries[nearest].cpu(), entries[truth].cpu(), float(rank), len(entries))
        )
    return rows


def strips(rows: Sequence[StripRow]) -> Figure:
    """The paper's figure 1: source, action in words, bank image nearest to the prediction, truth; the truth's rank.

    The frame of the nearest image is green and solid where it is the truth, red and dashed where it is not. Raises
    UserError without rows.
    """
    if not rows:
        raise UserError("There are no strips to draw; give at least one image.")
    blocks = 2 if len(rows) > 4 else 1
    height = math.ceil(len(rows) / blocks)
    side, gap, text, margin, head, caption = 1.3, 0.12, 1.3, 0.14, 0.36, 0.34
    block = 3 * side + text + 3 * gap
    between = 0.4
    figure = blank(2 * margin + blocks * block + (blocks - 1) * between, head + height * (side + caption) + 0.04)
    starts = (0.0, side + gap, side + text + 2 * gap, 2 * side + text + 3 * gap)
    for number in range(blocks):
        left = margin + number * (block + between)
        for start, name in zip(starts, ("source", "action", "nearest", "truth"), strict=True):
            centred = name == "action"
            x = left + start + (text / 2 if centred else 0)
            put_words(figure, name, x, 0.1, 10, weight="bold", ha="center" if centred else "left")
    for number, row in enumerate(rows):
        left = margin + number // height * (block + between)
        top = head + number % height * (side + caption)
        put_picture(figure, row.source, left + starts[0], top, side)
        words = "\n".join(textwrap.fill(part, 20) for part in row.action.split(", "))
        middle = left + starts[1] + text / 2
        put_words(figure, words, middle, top + side / 2 - 0.1, 8.5, ha="center", va="center", linespacing=1.35)
        put_words(figure, "⟶", middle, top + side - 0.24, 13, ha="center", color=GREY)
        colour = _framed(figure, row, left + starts[2], top, side)
        put_picture(figure, row.truth, left + starts[3], top, side)
        verdict = "is the truth" if row.right else "is not the truth"
        put_words(figure, verdict, left + starts[2], top + side + 0.06, 8.5, color=colour)
        put_words(figure, f"rank {row.rank:g} of {row.bank}", left + starts[3], top + side + 0.06, 8.5, color="#555555")
    return figure


def sweep(rows: Sequence[StripRow], name: str, changes: Sequence[float]) -> Figure:
    """Appendix J: one parameter over its range, from left to right; below the truth what is nearest to the prediction.

    Frames as in `strips`. Raises UserError without rows.
    """
    if not rows:
        raise UserError("There is no sweep to draw; give at least one value.")
    side, gap, margin, head, below = 1.1, 0.1, 0.14, 0.36, 0.3
    left = margin + 0.7
    figure = blank(left + len(rows) * (side + gap) + margin - gap, head + 2 * side + gap + below)
    put_words(figure, f"change of\n{name}", margin, 0.05, 8.5, weight="bold")
    for place, word in enumerate(("truth", "nearest")):
        put_words(figure, word, margin, head + place * (side + gap) + side / 2, 9, weight="bold", va="center")
    for number, (row, change) in enumerate(zip(rows, changes, strict=True)):
        start = left + number * (side + gap)
        put_words(figure, f"{change:+.2f}", start + side / 2, 0.1, 9, ha="center")
        put_picture(figure, row.truth, start, head, side)
        _framed(figure, row, start, head + side + gap, side)
        put_words(figure, f"rank {row.rank:g}", start + side / 2, head + 2 * side + gap + 0.06, 8.5, ha="center")
    return figure


def _framed(figure: Figure, row: StripRow, left: float, top: float, side: float) -> str:
    """Put the nearest image on the figure, framed by whether it is the truth; returns the frame's colour."""
    colour, stroke = (GREEN, "-") if row.right else (ORANGE, (0, (3, 1.5)))
    axes = put_picture(figure, row.nearest, left, top, side)
    axes.spines[:].set(visible=True, color=colour, linewidth=2.2, linestyle=stroke)
    return colour
