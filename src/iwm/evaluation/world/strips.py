"""Retrieval strips (paper figure 1, appendix J): what of a bank is nearest to what the world model imagined.

Where the RUN has a pixel decoder (`iwm decoder`), the imagined picture itself stands between the nearest and the truth,
and beside it the truth after the same decoder, whose blur is the decoder's alone.
"""

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.reference import reference_space
from iwm.actions.transformation import amount
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import algebra
from iwm.runtime.console import console
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
    imagined: Float[Tensor, "3 _h _w"] | None = None
    """The decoded prediction; None without a decoder."""
    decoded: Float[Tensor, "3 _h _w"] | None = None
    """The decoded truth."""

    @property
    def decibels(self) -> dict[str, float]:
        """PSNR of the decoded prediction, the decoded truth and the unchanged source to the truth; empty without a
        decoder."""
        return decibels(self.source, self.truth, self.imagined, self.decoded)

    @property
    def right(self) -> bool:
        """Whether the truth itself is nearest, and nothing else ties with it."""
        return self.rank == 1


def decibels(
    source: Float[Tensor, "3 h w"],
    truth: Float[Tensor, "3 h w"],
    imagined: Float[Tensor, "3 _h _w"] | None,
    decoded: Float[Tensor, "3 _h _w"] | None,
) -> dict[str, float]:
    """PSNR of the decoded prediction, the decoded truth and the unchanged source to the truth; empty without those."""
    if imagined is None or decoded is None:
        return {}
    pictures = torch.stack([imagined, decoded, source])
    values = algebra.psnr(pictures, truth.expand_as(pictures)).tolist()
    return dict(zip(("psnr_prediction", "psnr_truth", "psnr_unchanged"), values, strict=True))


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
    space, bank_space = model.space, reference_space(model.space, model.settings.data.image_size)
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
        carried = carrying(parameters[-1:], position, space)
        action = space.difference(carried, space.neutral(1))
        rows += ask(model, space.apply(clean, carried), action, torch.cat([clean, others]), [0])
    return rows


def carrying(parameters: Parameters, position: int, space: ActionSpace) -> Parameters:
    """The same with one transformation of the source on top, at its strongest so that it can be seen."""
    values, applied = parameters.values.clone(), parameters.applied.clone()
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
    prediction = model.predict(expanded, actions)
    distances = algebra.squared_distances(prediction.values.float(), targets)
    imagined = decoded = None
    if model.decodes:
        imagined = model.decode(prediction).cpu()
        decoded = model.decode(Tokens(targets[list(truths)], tokens.grid)).cpu()
    rows = []
    for number, (action, near, truth) in enumerate(zip(actions, distances, truths, strict=True)):
        rank = algebra.ranks(near.expand(len(entries), -1))[truth]
        rows.append(
            StripRow(
                source=source[0].cpu(),
                action=model.space.describe(action.cpu()),
                nearest=entries[int(near.argmin())].cpu(),
                truth=entries[truth].cpu(),
                rank=float(rank),
                bank=len(entries),
                imagined=None if imagined is None else imagined[number],
                decoded=None if decoded is None else decoded[number],
            )
        )
    return rows


def say_how_to_see(model: ImageWorldModel, run: str) -> None:
    """One line on the console where nothing was fitted to show predictions as pictures."""
    if not model.decodes:
        console.print(
            f"To see the imagined picture itself, fit a pixel decoder first: iwm decoder {shlex.quote(run)}",
            soft_wrap=True,
            markup=False,
        )


# ---- pictures ------------------------------------------------------------------------------------------------------

HEADS = {
    "source": "what the model sees",
    "action": "what it is told",
    "nearest": "of changed versions,\nto what it imagines",
    "imagined": "what it predicts,\nshown by the decoder",
    "truth, decoded": "the decoder's limit:\nthis blur is not the model's",
    "truth": "really changed",
}
"""Columns of the strips, with what a stranger needs to know; the imagined and the decoded need a decoder."""
NOTE = "dB: how close a picture is to the truth (PSNR over its pixels); higher is closer."


def strips(rows: Sequence[StripRow]) -> Figure:
    """The paper's figure 1: source, action in words, bank image nearest to the prediction, truth and its rank; where
    there is a decoder, the imagined picture and the decoded truth too, with their PSNR.

    The frame of the nearest image is green and solid where it is the truth, red and dashed where it is not. Raises
    UserError without rows.
    """
    if not rows:
        raise UserError("There are no strips to draw; give at least one image.")
    shows = bool(rows[0].decibels)
    heads = [name for name in HEADS if shows or name not in ("imagined", "truth, decoded")]
    blocks = 1 if shows or len(rows) <= 4 else 2
    height = math.ceil(len(rows) / blocks)
    side, gap, margin, head, caption, between = 1.5, 0.14, 0.14, 0.74, 0.34, 0.4
    block = len(heads) * (side + gap) - gap
    width = 2 * margin + blocks * block + (blocks - 1) * between
    bottom = head + height * (side + caption)
    figure = blank(width, bottom + (0.3 if shows else 0.04))
    for number in range(blocks):
        for place, name in enumerate(heads):
            x = margin + number * (block + between) + place * (side + gap)
            put_words(figure, name, x, 0.1, 10, weight="bold")
            put_words(figure, HEADS[name], x, 0.32, 7, color="#555555", linespacing=1.2)
    for number, row in enumerate(rows):
        left = margin + number // height * (block + between)
        places = {name: left + place * (side + gap) for place, name in enumerate(heads)}
        _draw_row(figure, row, places, head + number % height * (side + caption), side)
    if shows:
        put_words(figure, NOTE, margin, bottom + 0.04, 8, color="#555555")
    return figure


def _draw_row(figure: Figure, row: StripRow, places: Mapping[str, float], top: float, side: float) -> None:
    """Pictures of a row and what stands below them; `places` are the columns' left edges."""
    below, decibels = top + side + 0.06, row.decibels
    put_picture(figure, row.source, places["source"], top, side)
    words = "\n".join(textwrap.fill(part, 20) for part in row.action.split(", "))
    middle = places["action"] + side / 2
    put_words(figure, words, middle, top + side / 2 - 0.1, 8.5, ha="center", va="center", linespacing=1.35)
    put_words(figure, "⟶", middle, top + side - 0.24, 13, ha="center", color=GREY)
    colour = _framed(figure, row, places["nearest"], top, side)
    put_words(figure, "is the truth" if row.right else "is not the truth", places["nearest"], below, 8.5, color=colour)
    put_picture(figure, row.truth, places["truth"], top, side)
    put_words(figure, f"rank {row.rank:g} of {row.bank}", places["truth"], below, 8.5, color="#555555")
    if row.imagined is None or row.decoded is None:
        return
    for name, picture in (("imagined", row.imagined), ("truth, decoded", row.decoded)):
        put_picture(figure, picture, places[name], top, side)
    for name, key, more in (
        ("source", "unchanged", " if left as it is"),
        ("imagined", "prediction", ""),
        ("truth, decoded", "truth", " at best"),
    ):
        put_words(figure, f"{decibels[f'psnr_{key}']:.1f} dB{more}", places[name], below, 8.5, color="#555555")


def sweep(rows: Sequence[StripRow], name: str, changes: Sequence[float]) -> Figure:
    """Appendix J: one parameter over its range, from left to right; below the truth what is nearest to the prediction,
    and where there is a decoder, between them, the decoded truth and the imagined picture.

    Frames as in `strips`. Raises UserError without rows.
    """
    if not rows:
        raise UserError("There is no sweep to draw; give at least one value.")
    shows = bool(rows[0].decibels)
    lines = ("truth", "truth, decoded", "imagined", "nearest") if shows else ("truth", "nearest")
    side, margin, head, below = 1.1, 0.14, 0.36, 0.3
    gap, step = 0.1, side + (0.28 if shows else 0.1)
    left, bottom = margin + 0.95, head + (len(lines) - 1) * step + side
    figure = blank(left + len(rows) * (side + gap) + margin - gap, bottom + below + (0.24 if shows else 0))
    put_words(figure, f"change of\n{name}", margin, 0.05, 8.5, weight="bold")
    tops = {word: head + place * step for place, word in enumerate(lines)}
    for word, top in tops.items():
        words = word.replace(", ", ",\n")
        put_words(figure, words, margin, top + side / 2, 9, weight="bold", va="center")
    for number, (row, change) in enumerate(zip(rows, changes, strict=True)):
        start, decibels = left + number * (side + gap), row.decibels
        put_words(figure, amount(change, changes[-1] - changes[0]), start + side / 2, 0.1, 9, ha="center")
        put_picture(figure, row.truth, start, tops["truth"], side)
        _framed(figure, row, start, tops["nearest"], side)
        put_words(figure, f"rank {row.rank:g}", start + side / 2, bottom + 0.06, 8.5, ha="center")
        for word, picture, key in (("truth, decoded", row.decoded, "truth"), ("imagined", row.imagined, "prediction")):
            if picture is not None:
                put_picture(figure, picture, start, tops[word], side)
                below_it = tops[word] + side + 0.05
                put_words(figure, f"{decibels[f'psnr_{key}']:.1f} dB", start + side / 2, below_it, 8.5, ha="center")
    if shows:
        put_words(figure, NOTE, margin, bottom + below, 8, color="#555555")
    return figure


def _framed(figure: Figure, row: StripRow, left: float, top: float, side: float) -> str:
    """Put the nearest image on the figure, framed by whether it is the truth; returns the frame's colour."""
    colour, stroke = (GREEN, "-") if row.right else (ORANGE, (0, (3, 1.5)))
    axes = put_picture(figure, row.nearest, left, top, side)
    axes.spines[:].set(visible=True, color=colour, linewidth=2.2, linestyle=stroke)
    return colour
