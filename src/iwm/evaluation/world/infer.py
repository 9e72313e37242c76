"""What a world model knows of a change: the action between two images, found by search through the predictor, beside
what needs no world model.

    error = mean |a_found - a_true|  per component, in shares of the reference's range (the level `destructive`)

Pairs are (clean image, one entry of its bank), as in `iwm world`. Baselines: the null action; the same search among
pictures, which applies the known transformations to the source's pixels and is the better tool wherever the pixels are
there and correspond; ridge regression on the channel statistics of both images' pixels; ridge regression on the pooled
features of both, the encoder's and those of target space, which the search looks at too. Both regressions learn from
training images, everything is measured on held-out ones. With `shift` source and target are two crops of an image, so
no pixel and no patch corresponds: beside the others stand searches that compare averaged tokens and histograms.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.pixel_search import PixelSearch, histograms, pixels, reach_with_flags, search_pixels
from iwm.actions.reference import in_reference_units, reference_space, wider_space
from iwm.data.loader import load_one
from iwm.data.shares import load_draw
from iwm.data.sources import open_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Evaluation, Outcome
from iwm.evaluation.tasks.linear import choose_ridge
from iwm.evaluation.uncertainty import standard_error
from iwm.model.action_search import Search
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import open_world, plain_name
from iwm.runtime.console import console, progress, table
from iwm.runtime.drawing import grouped_bars
from iwm.runtime.errors import UserError
from iwm.verbs.infer import Infer

BATCH = 16
"""Pairs searched at once."""
PAIRS_READ = 256
"""Pairs whose features are taken at once."""
ANSWERS = {
    "search": "search through the predictor",
    "pooled_search": "the same, tokens averaged",
    "pixel_search": "search among pictures",
    "histogram_search": "the same, by histograms",
    "always_zero": "always zero",
    "pixel_statistics": "ridge, pixel statistics",
    "encoder_features": "ridge, pooled features",
}
"""Who says what the action is, by key and in words; averages and histograms where the crops differ."""


def infer(o: Infer) -> dict[str, Any]:
    """Find the action between two images, or measure over a source how well that goes; write, print and return it.

    Raises UserError for images that are none and for a RUN without predictor.
    """
    with ritual.evaluation("infer", o) as work:
        model = open_world(o.run, work.session)
        return _over_source(o, model, work) if o.data else _of_pair(o, model, work)


# ---- two images ----------------------------------------------------------------------------------------------------


def _of_pair(o: Infer, model: ImageWorldModel, work: Evaluation) -> dict[str, Any]:
    size = model.settings.data.image_size
    source, target = load_one(o.source, size), load_one(o.target, size)
    names = [plain_name(Path(path).stem) for path in (o.source, o.target)]
    with work.session.autocast():
        payload = answer_pair(model, source, target, undo=o.undo, seed=o.seed)
        payload |= {"data": f"{names[0]} to {names[1]}"}
    outcome = Outcome(
        data=names[1],
        payload=payload,
        settings=work.chosen(o, "undo", "seed", source=o.source, target=o.target),
        variant=(names[0],),
    )
    return work.conclude(outcome, lambda _: _show_pair(payload, names))


def answer_pair(
    model: ImageWorldModel,
    source: UInt8[Tensor, "1 3 s s"],
    target: UInt8[Tensor, "1 3 s s"],
    *,
    undo: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """The action between two images by search through the predictor and, under "pixel_search", among pictures: by
    component in raw units, in words, and the difference left (`residual`) beside that of no change (`null_residual`).

    Residuals are mean squared differences, of tokens in target space and of pixels.
    """
    space = model.space
    action = model.infer_action(source, target, Search(undo=undo))
    return {
        "action": in_raw_units(space, action[0]),
        "words": space.describe(action[0].cpu()),
        "residual": float(residuals(model, source, target, action)),
        "null_residual": float(residuals(model, source, target, space.null(1))),
        "pixel_search": _pixel_answer(space, source.to(model.device), target.to(model.device), seed),
    }


def in_raw_units(space: ActionSpace, action: Float[Tensor, " k"]) -> dict[str, float]:
    """Every component by its name: a difference of raw factors (hue in turns), or a flag."""
    pairs = zip(space.transformations, action.tolist(), strict=True)
    return {t.name: component * (t.range if t.graded else 1) for t, component in pairs}


def _pixel_answer(
    space: ActionSpace, source: UInt8[Tensor, "1 3 s s"], target: UInt8[Tensor, "1 3 s s"], seed: int
) -> dict[str, Any]:
    """What the search among pictures says, and the mean squared pixel difference that it leaves."""
    before, after = source.float() / 255, target.float() / 255
    space = wider_space(space, source.shape[-1])  # a training with few changes does not narrow what pictures show
    action = search_pixels(space, before, after, PixelSearch(seed=seed))
    changed = space.apply(before, reach_with_flags(space, action))
    return {
        "action": in_raw_units(space, action[0]),
        "words": space.describe(action[0]),
        "residual": float((changed - after).square().mean()),
        "null_residual": float((before - after).square().mean()),
    }


def _show_pair(numbers: Mapping[str, Any], names: list[str]) -> None:
    by_pixels = numbers["pixel_search"]
    title = f"The change from {names[0]} to {names[1]}"
    rows = [[name, value, by_pixels["action"][name]] for name, value in numbers["action"].items()]
    rows += [[key, numbers[key], by_pixels[key]] for key in ("words", "residual", "null_residual")]
    console.print(table(title, ["", ANSWERS["search"], ANSWERS["pixel_search"]], rows))
    console.print("The search among pictures undoes nothing that the source carries; residuals have their own units.")
    if numbers["residual"] > 0.9 * numbers["null_residual"]:
        console.print("[yellow]No action explains the target much better than leaving the source as it is.")


@torch.no_grad()
def residuals(
    model: ImageWorldModel,
    source: UInt8[Tensor, "n 3 s s"] | Float[Tensor, "n 3 s s"],
    target: UInt8[Tensor, "n 3 s s"] | Float[Tensor, "n 3 s s"],
    actions: Float[Tensor, "n k"],
) -> Float[Tensor, " n"]:
    """|p(f(x), a) - target(y)|^2, mean over tokens and channels, in target space."""
    prediction = model.predict(model.encode(source), actions.to(model.device)).values.float()
    return (prediction - model.target(target).values.float()).square().mean(dim=(1, 2)).cpu()


# ---- over a source -------------------------------------------------------------------------------------------------


def _over_source(o: Infer, model: ImageWorldModel, work: Evaluation) -> dict[str, Any]:
    size = model.settings.data.image_size
    if not model.space.amounts:
        raise UserError(
            f"{o.run} was trained without changes of an amount, as of brightness, so there is no error to measure; "
            "infer the change between two images, or train with some."
        )
    train, held, how = open_splits(o.data, o.val, size=size + o.shift)
    lessons, exam = (
        load_draw(images, count, size + o.shift, o.seed)[0]
        for images, count in ((train, o.train_images), (held, o.images))
    )
    with work.session.autocast():
        payload = measure(model, lessons, exam, o.seed, o.shift)
    payload |= {"data": held.name, "split": how, "images": len(exam), "train_images": len(lessons), "shift": o.shift}
    outcome = Outcome(
        data=held.name,
        payload=payload,
        settings={
            **work.chosen(o, "images", "train_images", "seed", data=o.data, val=o.val),
            **({"shift": o.shift} if o.shift else {}),
        },
        variant=(f"shift{o.shift}" if o.shift else "",),
        figures={"": lambda: _draw(payload)},
    )
    return work.conclude(outcome, lambda _: _show_errors(payload))


def answers_of(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The errors of a result by the words for who answered."""
    return {name: numbers[key] for key, name in ANSWERS.items() if key in numbers}


def _where(numbers: Mapping[str, Any]) -> str:
    return numbers["data"] + (f", crops {numbers['shift']} px apart" if numbers["shift"] else "")


def _show_errors(numbers: Mapping[str, Any]) -> None:
    components = list(numbers["search"]["components"])
    rows = [[name, each["error"], *each["components"].values()] for name, each in answers_of(numbers).items()]
    console.print(table(f"Error of the inferred action on {_where(numbers)}", ["", "mean", *components], rows))
    if numbers["pixel_search"]["error"] < numbers["search"]["error"]:
        console.print(
            "Searching among pictures finds the change better: where there are pixels, take that. This measures what "
            "the model knows of a change."
        )


def _draw(numbers: Mapping[str, Any]) -> Figure:
    title = f"Inferred actions on {_where(numbers)}: mean absolute error"
    series = {name: list(each["components"].values()) for name, each in answers_of(numbers).items()}
    return grouped_bars(title, "error, share of the range", list(numbers["search"]["components"]), series)


@dataclass(frozen=True)
class Pairs:
    """Images, each with one changed version, and the change."""

    source: Float[Tensor, "n 3 s s"]
    target: Float[Tensor, "n 3 s s"]
    action: Float[Tensor, "n k"]

    def split(self, count: int) -> Iterator["Pairs"]:
        """The pairs, `count` at a time."""
        parts = (values.split(count) for values in (self.source, self.target, self.action))
        return (Pairs(*part) for part in zip(*parts, strict=True))


def change_pairs(
    space: ActionSpace, images: UInt8[Tensor, "n 3 h h"], size: int, seed: int, indices: Int64[Tensor, " n"]
) -> Pairs:
    """Every image's upper left square of `size` px and one entry of the bank of its lower right one, drawn by its
    index; of images of that size, of the same picture."""
    reference = reference_space(space, size)
    parameters = Parameters.joined([reference.sample_bank(seed, int(index), 1) for index in indices])
    clean = images.float() / 255
    source, target = clean[..., :size, :size], clean[..., -size:, -size:]
    action = space.difference(space.neutral(len(images)), parameters)
    return Pairs(source.contiguous(), reference.apply(target, parameters), action)


def channel_statistics(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
    """Mean, deviation and 5, 50 and 95 % quantile of every channel and of what differs between channels, logarithms of
    those that a factor multiplies, and the channels' covariances."""
    red, green, blue = images.flatten(2).unbind(1)
    chroma = images.amax(1).sub(images.amin(1)).flatten(1)
    rows = torch.stack([red, green, blue, chroma, red - green, green - blue], dim=1)
    centred = rows[:, :3] - rows[:, :3].mean(dim=2, keepdim=True)
    products = [(centred[:, i] * centred[:, j]).mean(1, keepdim=True) for i, j in ((0, 1), (0, 2), (1, 2))]
    quantiles = rows.quantile(torch.tensor([0.05, 0.5, 0.95], device=rows.device), dim=2)
    mean, deviation = rows.mean(2), rows.std(2, correction=0)
    # A factor of brightness or contrast is a ratio: a difference of logarithms, which a linear regression can read.
    logs = torch.cat([mean[:, :4], deviation], dim=1).clamp_min(1 / 255).log()
    return torch.cat([mean, deviation, *quantiles, logs, *products], dim=1)


def features_of_pair(source: Float[Tensor, "n f"], target: Float[Tensor, "n f"]) -> Float[Tensor, "n g"]:
    """What a regression sees of a pair: the source's features and how they differ in the target."""
    return torch.cat([source, target - source], dim=1)


@torch.no_grad()
def pooled_tokens(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """The encoder's tokens and those of target space, averaged."""
    parts = [(model.encode(part).values, model.target(part).values) for part in images.split(64)]
    return torch.cat([torch.cat([tokens.float().mean(dim=1) for tokens in part], dim=1).cpu() for part in parts])


def measure(
    model: ImageWorldModel,
    train: UInt8[Tensor, "m 3 h h"],
    test: UInt8[Tensor, "n 3 h h"],
    seed: int = 0,
    shift: int = 0,
) -> dict[str, Any]:
    """Mean absolute error of the action found on the test images, of each component and over the graded ones, in shares
    of the reference's ranges; the same of the baselines, learned on the training images where they learn.

    Images are larger than the model's by `shift` px.
    """
    space, size = model.space, model.settings.data.image_size
    graded = space.amounts
    # Of thousands of training images few are held as numbers at a time.
    batches = torch.arange(len(train)).split(PAIRS_READ)
    lessons = (change_pairs(space, train[batch], size, seed, batch) for batch in batches)
    exam = change_pairs(space, test, size, seed + 1, torch.arange(len(test)))
    regressions, ends = _regressions(model, lessons, exam, graded, seed)
    answers = _searches(model, exam, seed, shift) | regressions
    units = in_reference_units(space, size)[graded]
    outcome: dict[str, Any] = {}
    for name, answer in answers.items():
        error = (units * (answer - exam.action)[:, graded]).abs()
        outcome[name] = {
            "error": float(error.mean()),
            "standard_error": standard_error(error.mean(1)),
            "components": {space.names[i]: float(error[:, k].mean()) for k, i in enumerate(graded)},
        }
    outcome = {"inferred_action_error": outcome["search"]["error"], **outcome}
    outcome |= {f"{name}_at_grid_end": place for name, place in ends.items()}
    null = torch.zeros_like(exam.action)
    for key, tried in (("residual", answers["search"]), ("null_residual", null), ("true_residual", exam.action)):
        parts = zip(exam.source.split(64), exam.target.split(64), tried.split(64), strict=True)
        outcome[key] = float(torch.cat([residuals(model, *part) for part in parts]).mean())
    return outcome


def _searches(model: ImageWorldModel, exam: Pairs, seed: int, shift: int) -> dict[str, Float[Tensor, "n k"]]:
    """The actions that searches find, through the predictor and among pictures, and the null action."""
    ways = {"search": Search(undo=False)} | ({"pooled_search": Search(undo=False, pooled=True)} if shift else {})
    answers: dict[str, list[Tensor]] = {name: [] for name in ways}
    with progress("pairs") as bar:
        task = bar.add_task("search", total=len(ways) * len(exam.action), note="")
        for name, way in ways.items():
            for source, target in zip(exam.source.split(BATCH), exam.target.split(BATCH), strict=True):
                answers[name].append(model.infer_action(source, target, way).cpu())
                bar.advance(task, len(source))
    actions = {name: torch.cat(parts) for name, parts in answers.items()}
    source, target = exam.source.to(model.device), exam.target.to(model.device)
    compared = {"pixel_search": pixels} | ({"histogram_search": histograms} if shift else {})
    size = model.settings.data.image_size
    units, reference = in_reference_units(model.space, size), reference_space(model.space, size)
    for name, features in compared.items():  # in the range that the pairs are of, so no training decides what it finds
        found = search_pixels(reference, source, target, PixelSearch(seed=seed), features)
        actions[name] = torch.where(units > 0, found / units, 0.0)
    return actions | {"always_zero": torch.zeros_like(exam.action)}


def _regressions(
    model: ImageWorldModel, lessons: Iterable[Pairs], exam: Pairs, graded: list[int], seed: int
) -> tuple[dict[str, Float[Tensor, "n k"]], dict[str, dict[str, str]]]:
    """What ridge regressions that learned from training pairs say of the graded components, and whose strength is an
    end of its grid."""
    answers, ends = {}, {}
    wanted, known = _features(model, lessons)
    _, questions = _features(model, exam.split(PAIRS_READ))
    for name, values in known.items():
        regression = choose_ridge(values, wanted[:, graded], seed)
        ends[name] = regression.at_grid_end
        answers[name] = torch.zeros_like(exam.action)
        answers[name][:, graded] = regression.logits(questions[name])
    return answers, ends


def _features(
    model: ImageWorldModel, parts: Iterable[Pairs]
) -> tuple[Float[Tensor, "n k"], dict[str, Float[Tensor, "n _f"]]]:
    """The actions of pairs, which come in parts, and what each regression sees of them, by its name."""
    actions: list[Tensor] = []
    values: dict[str, list[Tensor]] = {}
    for pairs in parts:
        actions.append(pairs.action)
        for name, features in (
            ("pixel_statistics", channel_statistics),
            ("encoder_features", partial(pooled_tokens, model)),
        ):
            pair = features_of_pair(features(pairs.source), features(pairs.target))
            values.setdefault(name, []).append(pair)
    return torch.cat(actions), {name: torch.cat(each) for name, each in values.items()}
