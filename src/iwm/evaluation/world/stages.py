"""What a model imagines of a few held-out photos while it is trained: a callback of `iwm.pretrain`.

Every line of metrics says at which rank the truth comes among versions of the same photo, beside what the model says
that is told no change, and a guess. At the start, half-way and at the end the imagined pictures are kept; side by side
they are RUN/stages.png.
"""

import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iwm.evaluation.world import changes
from iwm.evaluation.world.changes import Question
from iwm.evaluation.world.decoder import batches
from iwm.model import pixel_decoder
from iwm.runtime import files
from iwm.runtime.algebra import psnr
from iwm.runtime.console import console
from iwm.runtime.drawing import blank, put_picture, put_words, save
from iwm.runtime.tensors import save_file
from iwm.training.callbacks import Callback, State

BANK = 64
"""Versions of a photo that are ranked."""
LESSONS, CHANGES = 200, 2
"""Photos, and changes of each, that the decoder of a stage is fitted to."""


@dataclass(frozen=True)
class Stage:
    """What was imagined after some steps."""

    step: int
    pictures: Float[Tensor, "q 3 _h _w"]
    ranks: Float[Tensor, " q"]


class Stages(Callback):
    """Watch the rank of the truth on held-out photos, and keep what is imagined at the start, half-way and at the end.

    `photos` are held out; `lessons`, training photos, are what a linear decoder is fitted to at each of the stages.
    """

    def __init__(self, photos: UInt8[Tensor, "n 3 s s"], lessons: UInt8[Tensor, "m 3 s s"], seed: int) -> None:
        self.photos, self.lessons, self.seed = photos, lessons[:LESSONS], seed
        self.stages: list[Stage] = []
        self.questions: list[Question] = []

    def ask(self, state: State) -> list[Question]:
        """A change of each photo, asked of the model as it is."""
        names = [str(index) for index in range(len(self.photos))]
        with state.training.session.autocast():
            return changes.ask_changes(state.model, self.photos, names, BANK, self.seed)

    def on_start(self, state: State) -> None:
        """The first picture, or those of a run that goes on."""
        self.first = state.step
        self.stages = read(pictures_of(state), state.step)
        if state.step == 0:
            self.keep(state)
            console.print(f"Before the first step {self.ranks(self.questions)[-1]}.")
        self.since = time.monotonic()

    def on_step(self, state: State) -> None:
        if state.final or state.step == state.steps // 2:
            self.keep(state)

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        """The rank beside its controls, in the line of metrics and on the console."""
        told, untold, sentence = self.ranks(self.ask(state))
        line |= {"held_out_rank": told, "held_out_rank_untold": untold, "held_out_rank_chance": (BANK + 1) / 2}
        seconds = (time.monotonic() - self.since) / max(1, state.step - self.first) * (state.steps - state.step)
        console.print(
            f"After {state.step:,} of {state.steps:,} steps {sentence}; loss {line['loss']:.3f}"
            + (f"; {in_minutes(seconds)} left." if not state.final else ".")
        )

    def ranks(self, questions: Sequence[Question]) -> tuple[float, float, str]:
        """Mean rank of the truth, that of a model told no change, and both in words beside a guess."""
        told, untold = (mean([getattr(q, name).rank for q in questions]) for name in ("told", "untold"))
        return (
            told,
            untold,
            f"the truth comes at rank {told:.1f} of {BANK} on {len(self.photos)} held-out photos (told no change "
            f"{untold:.1f}, a guess {(BANK + 1) / 2:.1f})",
        )

    def on_end(self, state: State) -> None:
        """Draw what there is; of a run that failed at once there is nothing."""
        if self.questions:
            save(draw(self.stages, [question.told for question in self.questions]), state.run.stages)

    @torch.no_grad()
    def keep(self, state: State) -> None:
        """Keep what is imagined now, shown by a decoder that is fitted to the targets as they are now."""
        model = state.model
        with state.training.session.autocast():
            lessons = batches(model, self.lessons, CHANGES, self.seed)
            model.decoder, _ = pixel_decoder.fit(lessons, "linear", self.seed)
        try:
            self.questions = self.ask(state)
        finally:
            model.decoder = None
        rows = [question.told for question in self.questions]
        pictures = torch.stack([row.imagined for row in rows if row.imagined is not None])
        stage = Stage(state.step, pictures.clamp(0, 1), torch.tensor([row.rank for row in rows]))
        self.stages = [one for one in self.stages if one.step < stage.step] + [stage]
        write(pictures_of(state), self.stages)


def pictures_of(state: State) -> Path:
    """The file that a run which goes on reads the earlier stages from."""
    return state.run.stages.with_suffix(".safetensors")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def in_minutes(seconds: float) -> str:
    """About how long, in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{math.ceil(seconds / 30) / 2:g} minutes"


def write(path: Path, stages: Sequence[Stage]) -> None:
    """Write the stages, whole or not at all."""
    tensors = {}
    for stage in stages:
        tensors |= {f"{stage.step}.pictures": stage.pictures.contiguous(), f"{stage.step}.ranks": stage.ranks}
    with files.replacing(path) as part:
        save_file(tensors, part)


def read(path: Path, step: int) -> list[Stage]:
    """The stages up to a step that were written; none where the file is absent or damaged, which is said."""
    if not path.is_file():
        return []
    try:
        tensors = load_file(path)
        steps = sorted(int(name.split(".")[0]) for name in tensors if name.endswith(".ranks"))
        stages = [Stage(number, tensors[f"{number}.pictures"], tensors[f"{number}.ranks"]) for number in steps]
    except (OSError, SafetensorError, KeyError, ValueError):
        console.print(f"[yellow]{path} cannot be read; the earlier pictures are left out.", soft_wrap=True)
        return []
    return [stage for stage in stages if stage.step <= step]


# ---- the picture ---------------------------------------------------------------------------------------------------


def draw(stages: Sequence[Stage], rows: Sequence[Any]) -> Figure:
    """A row a photo: source, the change in words, what was imagined at every stage, decoded truth, truth.

    `rows` are the last stage's `StripRow`s.
    """
    names = ["held-out photo", "change", *(stage_name(stages, place) for place in range(len(stages)))]
    names += ["at best", "really changed"]
    notes = ["never trained on", "that it is told", *(f"after {stage.step:,} steps" for stage in stages)]
    notes += ["truth, same decoder", "the truth"]
    side, gap, margin, head, caption = 1.35, 0.14, 0.14, 0.62, 0.34
    figure = blank(2 * margin + len(names) * (side + gap) - gap, head + len(rows) * (side + caption) + 0.3)
    lefts = [margin + place * (side + gap) for place in range(len(names))]
    for left, name, note in zip(lefts, names, notes, strict=True):
        put_words(figure, name, left, 0.1, 9.5, weight="bold")
        put_words(figure, note, left, 0.32, 7.5, color="#555555")
    for number, row in enumerate(rows):
        top = head + number * (side + caption)
        below = top + side + 0.06
        words = "\n".join(textwrap.fill(part, 16) for part in row.action.split(", "))
        put_words(figure, words, lefts[1] + side / 2, top + side / 2, 9, ha="center", va="center")
        imagined = [(stage.pictures[number], f", rank {stage.ranks[number]:g} of {row.bank}") for stage in stages]
        shown = [(row.source, " if left as it is"), *imagined, (row.decoded, "")]
        for left, (picture, more) in zip([lefts[0], *lefts[2:]], shown, strict=False):
            put_picture(figure, picture, left, top, side)
            decibels = float(psnr(picture[None], row.truth[None]))
            put_words(figure, f"{decibels:.1f} dB{more}", left, below, 7.5, color="#555555")
        put_picture(figure, row.truth, lefts[-1], top, side)
    note = "dB: how close a picture is to the truth (PSNR); rank: its place among versions of the photo, 1 is right."
    put_words(figure, note, margin, head + len(rows) * (side + caption) + 0.04, 8, color="#555555")
    return figure


def stage_name(stages: Sequence[Stage], place: int) -> str:
    """Of three stages start, half-way and end; of fewer how far it has got."""
    return ("imagined: start", "half-way", "at the end")[place] if len(stages) == 3 else f"imagined {place + 1}"
