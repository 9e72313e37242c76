"""What would these photos look like? Single changes of some photos, each beside what a model says that is told nothing.

    rank of the truth y_t by |p(f(x), a) - target(y_t)|^2 in a bank {y_j}      told nothing: a = 0

The first thing `iwm demo` shows; like `iwm imagine`, of several photos and with changes that the model's space chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import reference_space
from iwm.actions.transformation import Transformation
from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_draw
from iwm.data.sources import EMBEDDED, open_images, open_pictures
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.world import strips
from iwm.evaluation.world.strips import StripRow
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import open_world
from iwm.runtime.bounds import AtLeast
from iwm.runtime.console import console, table
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Measured, OneRun

SHOWN = 6
"""Photos of which a change is imagined; of a single photo, changes."""


@dataclass(frozen=True, kw_only=True)
class Changes(Measured, OneRun):
    """What is imagined of which photos."""

    photos: str
    """A source; of an embedded one the photos that are held out."""
    bank: Annotated[int, AtLeast(2)] = 256
    """Versions of a photo that are ranked, the truth among them."""


@dataclass(frozen=True)
class Question:
    """A change of a photo, asked with the change told and without."""

    photo: str
    told: StripRow
    untold: StripRow


def imagine_changes(o: Changes) -> dict[str, Any]:
    """Imagine a change of each of some photos, or several of a single one.

    Writes RUN/eval/imagine-changes-DATA.json and .png, prints the ranks beside their controls, returns what it wrote.

    Raises UserError for a source that cannot be read, or a RUN without predictor.
    """
    with ritual.evaluation("imagine", o) as work:
        model = open_world(o.run, work.session)
        size = model.settings.data.image_size
        photos = held_out(o.photos, size)
        images, rows = load_draw(photos, SHOWN, size, o.seed)
        names = [Path(photos.path(int(row))).name for row in rows]
        with work.session.autocast():
            questions = ask_changes(model, images, names, o.bank, o.seed)
        outcome = Outcome(
            data=photos.name,
            payload={"data": photos.name, "photos": len(images), **_numbers(questions)},
            settings={"changes": SHOWN, **work.chosen(o, "bank", "seed", photos=o.photos)},
            variant=("changes",),
            figures={"": lambda: strips.strips([question.told for question in questions])},
        )
        return work.conclude(outcome, _show)


def held_out(photos: str, size: int) -> ImageSet:
    """Photos that the shipped model was not trained on: of an embedded source its validation split, else all."""
    return open_images(photos, "val", size=size) if photos in EMBEDDED else open_pictures(photos, size)


def changes_of(space: ActionSpace, count: int = SHOWN) -> Float[Tensor, "q k"]:
    """Actions that each move two graded parameters to ends of their ranges, all pairs taking turns: one alone (the
    saturation) may hardly be seen.

    Raises UserError for a space without such parameters.
    """
    graded = [space.transformations[place] for place in reversed(space.amounts)]
    if not graded:
        raise UserError("This model's actions have no graded change to imagine; look at it with iwm world.")
    groups = list(combinations(graded, min(2, len(graded))))
    actions = []
    for number in range(count):
        turn, place = divmod(number, len(groups))
        up = (turn + place) % 2 == 0
        ends = zip(groups[place], (up, not up), strict=False)
        actions.append(space.encode(**{t.name: _end(t, up) for t, up in ends}))
    return torch.stack(actions)


def _end(t: Transformation, up: bool) -> float:
    """The change of an untouched image to an end of the range; where that is no change, half of the way to the other
    end."""
    return ((t.high if up else t.low) - t.neutral) or ((t.low if up else t.high) - t.neutral) / 2


@torch.no_grad()
def ask_changes(
    model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], names: Sequence[str], bank: int, seed: int
) -> list[Question]:
    """One change of each photo; of a single photo SHOWN. Every bank holds the truth and random changes of the photo."""
    reference = reference_space(model.space, model.settings.data.image_size)
    actions = changes_of(model.space, max(SHOWN, len(images)))
    questions: list[Question] = []
    for index, image in enumerate(images):
        asked = actions if len(images) == 1 else actions[index : index + 1]
        clean = image[None].to(model.device).float() / 255
        truths = model.space.apply(clean.expand(len(asked), -1, -1, -1), model.space.reach(asked))
        others = max(bank - len(asked), 1)
        changed = reference.apply(clean.expand(others, -1, -1, -1), reference.sample_bank(seed, index, others))
        both = torch.cat([asked, torch.zeros_like(asked)])
        rows = strips.ask(model, clean, both, torch.cat([truths, changed]), 2 * list(range(len(asked))))
        told, untold = rows[: len(asked)], rows[len(asked) :]
        questions += [Question(names[index], *pair) for pair in zip(told, untold, strict=True)]
    return questions


def _numbers(questions: Sequence[Question]) -> dict[str, Any]:
    """Means over the questions, then every question."""
    asked = [
        {
            "photo": q.photo,
            "action": q.told.action,
            "rank": q.told.rank,
            "rank_untold": q.untold.rank,
            **q.told.decibels,
        }
        for q in questions
    ]
    keys = [key for key in asked[0] if key not in ("photo", "action")]
    means = {key: sum(float(row[key]) for row in asked) / len(asked) for key in keys}
    return {"bank": questions[0].told.bank, **means, "asked": asked}


def _show(numbers: Mapping[str, Any]) -> None:
    """Every question and the means, beside what the numbers are worth."""
    bank, shows = numbers["bank"], "psnr_truth" in numbers
    columns = ["photo", "change", "rank", "told nothing", *(["imagined", "as it is", "limit"] if shows else [])]
    keys = ["rank", "rank_untold", *(["psnr_prediction", "psnr_unchanged", "psnr_truth"] if shows else [])]
    lines = [*numbers["asked"], {"photo": "mean", "action": "", **numbers}]
    rows = [
        [shorten(row["photo"]), row["action"].replace(", ", "\n"), *(f"{row[key]:.1f}" for key in keys)]
        for row in lines
    ]
    console.print(table(f"Imagined changes of {numbers['data']}", columns, rows))
    console.print(
        f"rank: among {bank} versions of a photo, the place of the really changed one by closeness to what the model "
        f"imagined. 1 is right, a guess has {(bank + 1) / 2:.1f}; beside it the rank when the model is told no change."
    )
    if shows:
        console.print(
            "imagined, as it is, limit: how close the imagined picture, the unchanged photo and the truth after "
            "the decoder (its best) are to the really changed photo, in dB (PSNR); higher is closer."
        )


def shorten(name: str, length: int = 10) -> str:
    """A file's name for a narrow column."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
