"""How good is the world model? Mean reciprocal rank among jittered versions of the same image (paper section 4.1).

For each image: a bank of B jittered targets; the clean image's tokens through the predictor with the action of bank
entry j, all positions queried; the rank of entry j by squared distance in target space over all tokens.
MRR = mean 1/rank; a predictor that ignores the action has H_B / B (0.0239 for B = 256). Ties count half.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import bank_ranges, in_reference_units, reference_space
from iwm.data.shares import load_draw
from iwm.data.sources import open_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.uncertainty import standard_error, standing
from iwm.evaluation.world import strips
from iwm.evaluation.world.calibration import CLEAN, Calibration, calibrate, colours_of
from iwm.evaluation.world.twin import train_twin
from iwm.model import target_measures
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.run_folder import open_world
from iwm.runtime import distributed, sharing
from iwm.runtime.algebra import chance, ranks, squared_distances
from iwm.runtime.console import console, progress
from iwm.runtime.devices import Session
from iwm.verbs.world import World

HITS = (1, 5, 10)
BESIDE = {"calibrated": "mrr_calibrated", "common": "mrr_common", "limit": "mrr_common_limit"}
"""Distances beside those of the predictions to the targets, and what the MRR by them is called."""
SHOWN = (
    *("mrr", "mrr_standard_error", "mrr_chance", "mrr_shuffled", "mrr_null", "mrr_own_range", "mrr_calibrated"),
    *("mrr_common", "mrr_common_limit", "frozen_random_twin_mrr", "frozen_random_twin_mrr_common"),
    *("hits_at_1", "hits_at_5", "hits_at_10", "action_sensitivity", "slope", "action_correlation"),
    *("inferred_action_error", "always_zero_action_error"),
    *("target_position_share", "target_pixel_r2", "photometric_share"),
)
"""The numbers that are printed; the file holds the rest, errors of single components among them."""
PUBLISHED = "The paper's MRR (ImageNet, ViT-B/16, 300 epochs) by conditioning: none 0.00, sequence 0.82, feature 0.79."


@torch.no_grad()
def rank_image(
    model: ImageWorldModel,
    image: UInt8[Tensor, "3 s s"],
    index: int,
    bank: int,
    seed: int,
    bank_space: ActionSpace,
    graded: list[int],
    calibration: Calibration | None,
) -> dict[str, Tensor]:
    """Predict and rank one image's bank; what it adds to the numbers, by the name that `measure_each` knows it by.

    Actions are encoded in the model's own ranges; `graded` are the components whose error counts.
    """
    pixels = image[None].to(model.device).float() / 255
    parameters = bank_space.sample_bank(seed, index, bank)
    entries = bank_space.apply(pixels.expand(bank, -1, -1, -1), parameters)
    actions = model.space.difference(model.space.neutral(bank), parameters).to(model.device)
    clean = model.encode(pixels)
    truth, guess = [], []
    for entry, action in zip(entries.split(64), actions.split(64), strict=True):
        truth.append(model.target(entry).values.float())
        tokens = Tokens(clean.values.expand(len(entry), -1, -1), clean.grid)
        guess.append(model.predict(tokens, action).values.float())
    targets, predictions = torch.cat(truth), torch.cat(guess)
    still = model.predict(clean, model.space.null(1, model.device)[0]).values.float()
    predicted, true = predictions - still, targets - model.target(pixels).values.float()
    moves = [float(predicted.square().sum()), float(true.square().sum()), float((predicted * true).sum())]
    distances = squared_distances(predictions, targets)
    row = {
        "rank": ranks(distances),
        "shuffled": 1 / ranks(distances.roll(1, dims=0)),
        "null": 1 / ranks(squared_distances(still, targets).expand(bank, bank)),
        "error": (actions[distances.argmin(1)] - actions)[:, graded].abs().mean(0),
        "zero": actions[:, graded].abs().mean(0),
        "moves": torch.tensor(moves, dtype=torch.float64),
    }
    if calibration:
        real = colours_of(entries)[:, None]
        guessed, known = (calibration.colours(values, clean.grid)[:, None] for values in (predictions, targets))
        further = {
            "calibrated": squared_distances(calibration.stretched(predictions, still), targets),
            "common": squared_distances(guessed, real),
            "limit": squared_distances(known, real),
        }
        row |= {name: (1 / ranks(each).double()).mean() for name, each in further.items()}
    return {name: value.cpu() for name, value in row.items()}


def measure(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    bank: int = 256,
    seed: int = 0,
    lessons: UInt8[Tensor, "m 3 s s"] | None = None,
) -> dict[str, float]:
    """`measure_each` on the common range, without the images' own values."""
    return measure_each(model, images, bank, seed, lessons=lessons)[0]


@torch.no_grad()
def measure_each(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    bank: int = 256,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
    own_range: bool = False,
    lessons: UInt8[Tensor, "m 3 s s"] | None = None,
) -> tuple[dict[str, float], dict[str, Float[Tensor, " n"]]]:
    """MRR, hits@k and all controls over the images' banks; with `lessons`, training images, also calibrated and in the
    space common to all models (`iwm.evaluation.world.calibration`).

    mrr_shuffled: every prediction made with another entry's action; mrr_null: with the null action; both are at
    chance by construction of the metric unless targets tie. action_sensitivity = |p(a) - p(0)|^2 / |target(y_a) -
    target(y_0)|^2; slope and action_correlation are those of the predicted on the true change.
    inferred_action_error: mean absolute error, per component and in units of the reference's range, of the action of
    the bank entry nearest to the prediction. `advance` is called after every image. The bank's range is the
    `destructive` level's, common to all models, or the model's own. Every rank measures its share of the images.
    Beside the numbers stand those of BESIDE of every image.
    """
    bank_space = model.space if own_range else reference_space(model.space, model.settings.data.image_size)
    graded = [i for i, t in enumerate(model.space.transformations) if t.graded and t.both]
    units = in_reference_units(model.space, model.settings.data.image_size)[graded]
    calibration = calibrate(model, lessons, seed, bank_space) if lessons is not None and len(lessons) > 1 else None

    def numbers_of(indices: Tensor) -> dict[str, Tensor]:
        rows = []
        for index in indices.tolist():
            rows.append(rank_image(model, images[index], index, bank, seed, bank_space, graded, calibration))
            advance()
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    each = sharing.each_by_rows(numbers_of, torch.arange(len(images)))
    rank, (moved, moves, along) = each["rank"].flatten(), each["moves"].sum(0).tolist()
    reciprocal = (1 / each["rank"].double()).mean(1)
    error, nothing = each["error"].mean(0) * units, each["zero"].mean(0) * units
    per_image = {name: each[name] for name in BESIDE if name in each}
    numbers = {
        "mrr": float(reciprocal.mean()),
        "mrr_standard_error": standard_error(reciprocal),
        "mrr_chance": chance(bank),
        "mrr_shuffled": float(each["shuffled"].double().mean()),
        "mrr_null": float(each["null"].double().mean()),
        **{f"hits_at_{k}": float((rank <= k).double().mean()) for k in HITS},
        **_beside(per_image, calibration),
        "action_sensitivity": moved / max(moves, 1e-12),
        "slope": along / max(moves, 1e-12),
        "action_correlation": along / max(math.sqrt(moved * moves), 1e-12),
        "inferred_action_error": float(error.mean()),
        "always_zero_action_error": float(nothing.mean()),
        **{f"inferred_{model.space.names[i]}_error": float(error[k]) for k, i in enumerate(graded)},
    }
    return numbers, per_image


def _beside(per_image: Mapping[str, Tensor], calibration: Calibration | None) -> dict[str, float]:
    """The MRR by each further ruler, with its standard error over images, and the slope that was stretched by."""
    numbers = {}
    for name, values in per_image.items():
        numbers[BESIDE[name]] = float(values.mean())
        numbers[f"{BESIDE[name]}_standard_error"] = standard_error(values)
    return numbers | ({"calibration_slope": calibration.slope} if calibration else {})


def world(o: World) -> dict[str, Any]:
    """Measure RUN on held-out images of `data`; writes RUN/eval/world-DATA.json and .png, returns the result.

    Raises UserError for a source with too few images, or a RUN that is none.
    """
    with ritual.evaluation("world", o) as work:
        session = work.session
        model = open_world(o.run, session)
        size = model.settings.data.image_size
        train, held, how = open_splits(o.data, o.val, size=size)
        console.print(f"{how}.")
        lessons, _ = load_draw(train, CLEAN, size, o.seed)
        pixels, _ = load_draw(held, o.images, size, o.seed)
        twin = open_world(str(train_twin(o.run, o.speed).path), session) if o.frozen_random_twin else None
        payload = _with_controls(model, twin, pixels, lessons, o, session)
        with session.autocast(), distributed.share():
            payload |= target_measures.of_images(model, lessons, o.seed)
        payload |= {"data": held.name, "split": how, "images": len(pixels), "bank": o.bank}
        usual = (o.images, o.bank, o.seed) == (64, 256, 0)
        outcome = Outcome(
            data=held.name,
            payload=payload,
            settings={
                "images": len(pixels),
                **work.chosen(o, "bank", "seed", "frozen_random_twin", data=o.data, val=o.val),
            },
            variant=() if usual else (f"{o.images}x{o.bank}-seed{o.seed}",),
            figures={"": lambda: _strips(model, pixels, o, session)},
        )
        content = work.conclude(outcome, _show)
        strips.say_how_to_see(model, o.run)
        return content


def _show(content: Mapping[str, Any]) -> None:
    ritual.printing(f"World model on {content['data']}", (*SHOWN, "images", "bank"))(content)
    console.print(PUBLISHED)
    error = content["mrr_standard_error"]  # of a single image it is not known
    if error is not None and standing(content["mrr"], content["mrr_chance"], error) == "BELOW":
        console.print("[red]MRR is below chance: targets tie, so the target space has collapsed.")


def _strips(model: ImageWorldModel, pixels: UInt8[Tensor, "n 3 s s"], o: World, session: Session) -> Figure:
    with session.autocast():
        return strips.strips(strips.strip_rows(model, pixels[:6], o.seed, o.bank))


def _with_controls(
    model: ImageWorldModel,
    twin: ImageWorldModel | None,
    pixels: UInt8[Tensor, "n 3 s s"],
    lessons: UInt8[Tensor, "m 3 s s"],
    o: World,
    session: Session,
) -> dict[str, Any]:
    """The numbers of `measure`, on the model's own range where it is another one, and those of the twin, on the same
    changes of the same images: so the error of the difference is that of the images' differences."""

    def numbers_of(
        model: ImageWorldModel, name: str, own_range: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with session.autocast(), progress("images") as bar:
            task = bar.add_task(name, total=len(sharing.share_of(len(pixels))), note="")
            known = None if own_range else lessons
            return measure_each(model, pixels, o.bank, o.seed, lambda: bar.advance(task), own_range, known)

    numbers, per_image = numbers_of(model, "world")
    if bank_ranges(reference_space(model.space, model.settings.data.image_size)) != bank_ranges(model.space):
        numbers["mrr_own_range"] = numbers_of(model, "own range", own_range=True)[0]["mrr"]
    if twin:
        others, of_twin = numbers_of(twin, "twin")
        numbers |= {f"frozen_random_twin_{name}": others[name] for name in ("mrr", "mrr_common") if name in others}
        numbers |= {"frozen_random_twin": others}
        if "common" in per_image and "common" in of_twin:
            error = standard_error(per_image["common"] - of_twin["common"])
            numbers["mrr_common_difference_standard_error"] = error
    return numbers
