"""Does an encoder know an image again? A probe that needs no labels.

    score(q, g) = cos((z_q - mean) / std, (z_g - mean) / std)        mean, std: of the gallery's pooled tokens z

The gallery are centre crops of held-out images. Each is looked for twice: by a random crop of it (area .3 to 1,
mirrored or not, as in training), and by that crop changed as the action level `destructive` changes a source. With
`undo` the predictor first maps the changed crop's tokens to those of the crop as it was, and the gallery lies in target
space too:

    before  pool target(x)        after  pool p(f(x), a)        x = changed crop

The action a is the true one, or one that is inferred from the changed crop alone: by ridge regression on its pooled
tokens and its pixels' statistics, learned on training images that were changed alike. Beside it stand the queries in
target space as they are, and the null action.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.reference import reference_space
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.shares import load_with_crops
from iwm.data.sources import open_splits
from iwm.data.splits import draw_rows
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.features import RAW_SIZES, FrozenEncoder, Pooling, RawPixels
from iwm.evaluation.tasks.linear import Linear, choose_ridge
from iwm.evaluation.tasks.probe_kinds import FeatureProbe
from iwm.evaluation.uncertainty import bootstrap_error
from iwm.evaluation.world.infer import channel_statistics
from iwm.evaluation.world.undo import pooled_prediction, pooled_target
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.run_folder import open_world
from iwm.runtime import drawing, sharing
from iwm.runtime.algebra import chance, standardisation
from iwm.runtime.console import console, progress, table
from iwm.runtime.devices import Session
from iwm.runtime.drawing import GREEN, GREY, grouped_bars, put_picture, put_words
from iwm.runtime.errors import UserError
from iwm.verbs.probe import Probe

AREA = (0.3, 1.0)
"""Area of a query's crop, as a fraction of the image."""
LESSONS, CHANGES = 1000, 3
"""Training images at most from which it is learned to infer an action, and how often each of them is changed."""
SHOWN, NEAREST = 8, 5
"""Queries on the picture, and how many of the gallery's nearest images beside each."""
ENCODERS = {"": "this encoder", "random_encoder_": "random encoder", "raw_pixels_": "raw pixels"}
"""Who looks, by the beginning of the keys; `other_encoder_` and `last_block_` join where they are asked for."""
UNDO = {
    "target_": "in target space",
    "undo_null_": "null action",
    "undo_inferred_": "undone, inferred",
    "undo_known_": "undone, known",
}
"""What becomes of the changed crop before it is looked for, by the beginning of the keys."""


# ---- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Held-out images of a gallery, and what each of them is looked for by."""

    gallery: UInt8[Tensor, "n 3 s s"]
    crops: UInt8[Tensor, "n 3 s s"]
    changed: UInt8[Tensor, "n 3 s s"]
    parameters: Parameters
    """What was done to the changed crops."""


def draw_pictures(images: ImageSet, count: int, space: ActionSpace, size: int, seed: int) -> Pictures:
    """Up to `count` images of a set (0: all) and their queries, a pure function of seed and index in the set.

    Raises UserError when fewer than two are left.
    """
    rows = draw_rows(count or len(images), len(images), seed)
    gallery, crops, kept = load_with_crops(Subset(images, rows), size, AREA, seed, rows)
    if len(kept) < 2:
        raise UserError(f"'{images.name}' ({images.split}) holds a single image, too few to look for one; add images.")
    parameters = space.sample(seed, 0, rows[kept], "source", always=True)
    return Pictures(gallery, crops, changed_by(space, crops, parameters), parameters)


def changed_by(
    space: ActionSpace, images: UInt8[Tensor, "n 3 s s"], parameters: Parameters
) -> UInt8[Tensor, "n 3 s s"]:
    """The images transformed and rounded to whole numbers, as a picture file would hold them."""
    parts = []
    for start in range(0, len(images), 64):
        rows = slice(start, start + 64)
        part = space.apply(images[rows].float() / 255, parameters[rows])
        parts.append((part.nan_to_num().clamp(0, 1) * 255).round().byte())
    return torch.cat(parts)


# ---- retrieval -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """What became of each query."""

    rank: Float[Tensor, " n"]
    """Of its own image in the gallery, from 1; ties count half."""
    first: Float[Tensor, " n"]
    """Probability that its own image comes first; what ties for the first place shares it."""
    nearest: Int64[Tensor, "n _k"]
    """The gallery's most similar images, the most similar first."""


def retrieve(queries: Float[Tensor, "n d"], gallery: Float[Tensor, "n d"]) -> Retrieval:
    """Look for image i of the gallery by query i: cosine after standardisation by the gallery's mean and deviation.

    Features that are not finite come last.
    """
    gallery, queries = gallery.double(), queries.double()
    mean, deviation = standardisation(gallery)
    gallery, queries = (F.normalize((values - mean) / deviation, dim=1) for values in (gallery, queries))
    ranks, firsts, nearest = [], [], []
    for rows in torch.arange(len(queries)).split(max(1, 2**24 // len(gallery))):
        # Cosines that are equal up to rounding are ties, or copies of an image would be told apart by chance.
        cosine = (queries[rows] @ gallery.T * 1e9).round()
        own = cosine.gather(1, rows[:, None])
        ahead = ((cosine > own) | ~own.isfinite()).sum(1) - (~own.isfinite()).sum(1)
        tied = (cosine == own).sum(1) - own.isfinite().sum(1)
        ranks.append(1 + ahead + tied / 2)
        firsts.append((ahead == 0) / (1 + tied))
        nearest.append(cosine.nan_to_num(-math.inf).topk(min(NEAREST, len(gallery)), dim=1).indices)
    return Retrieval(torch.cat(ranks).double(), torch.cat(firsts).double(), torch.cat(nearest))


def look_for(encoder: FrozenEncoder, pictures: Pictures, pooling: Pooling, session: Session) -> dict[str, Retrieval]:
    """The images of the gallery looked for by their changed crops, "", and by the crops as they were, "crop_"; where
    several blocks are read by the last one alone, too: "last_block_", "last_block_crop_"."""
    encoder = encoder.reading(encoder.layers, last_too=encoder.layers > 0)
    gallery, crops, changed = (
        features.apart(encoder, features.encode(encoder, images, pooling=pooling, session=session), pooling, session)
        for images in (pictures.gallery, pictures.crops, pictures.changed)
    )
    retrievals: dict[str, Retrieval] = {}
    for blocks, values in gallery.items():
        retrievals[f"{blocks}crop_"] = retrieve(crops[blocks], values)
        retrievals[blocks] = retrieve(changed[blocks], values)
    return retrievals


def look_by_pixels(pictures: Pictures, size: int, session: Session) -> tuple[int, dict[str, Retrieval]]:
    """`look_for` by pixels at 8, 16 or 32 px: the side that finds most changed crops, a choice in the control's
    favour."""
    sides = [side for side in RAW_SIZES if side <= size] or [size]
    looks = [(side, look_for(RawPixels(side, size), pictures, "mean", session)) for side in sides]
    return max(looks, key=lambda look: float(look[1][""].first.mean()))


# ---- undoing the change --------------------------------------------------------------------------------------------


@torch.no_grad()
def look_undone(
    model: ImageWorldModel, pictures: Pictures, lessons: UInt8[Tensor, "m 3 s s"], seed: int, *, student: bool = False
) -> dict[str, Retrieval]:
    """The gallery in target space looked for by the changed crops, by the names of UNDO.

    `lessons` are crops of training images, not changed yet: from them it is learned to infer an action.
    """
    space = model.space
    regression = learn_actions(model, lessons, seed, student=student)
    truth = space.difference(pictures.parameters, space.neutral(len(pictures.changed)))

    def undone(changed: UInt8[Tensor, "n 3 s s"], truth: Float[Tensor, "n k"]) -> dict[str, Tensor]:
        queries: dict[str, list[Tensor]] = {name: [] for name in UNDO}
        with progress("images") as bar:
            task = bar.add_task("undo", total=len(truth), note="")
            for part, known in zip(changed.split(64), truth.split(64), strict=True):
                tokens = model.encode(part.to(model.device), student=student)
                inferred = possible(space, regression.logits(traces(tokens, part)))
                queries["target_"].append(pooled_target(model, part.to(model.device).float() / 255))
                for name, actions in (
                    ("undo_null_", space.null(len(part))),
                    ("undo_inferred_", inferred),
                    ("undo_known_", known),
                ):
                    queries[name].append(pooled_prediction(model, tokens, actions.to(model.device)))
                bar.advance(task, len(part))
        return {name: torch.cat(parts) for name, parts in queries.items()}

    gallery = pooled_target(model, pictures.gallery.to(model.device).float() / 255)
    queries = sharing.each_by_rows(undone, pictures.changed, truth)
    return {name: retrieve(rows, gallery) for name, rows in queries.items()}


def learn_actions(model: ImageWorldModel, lessons: UInt8[Tensor, "m 3 s s"], seed: int, *, student: bool) -> Linear:
    """A ridge regression from the traces of a changed image to the action that undoes the change."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    inputs, wanted = [], []

    def seen(changed: UInt8[Tensor, "m 3 s s"]) -> Float[Tensor, "m f"]:
        parts = changed.split(64)
        return torch.cat([traces(model.encode(part.to(model.device), student=student), part) for part in parts])

    for change in range(1, CHANGES + 1):  # of the queries it is number 0
        parameters = reference.sample(seed, change, np.arange(len(lessons)), "source", always=True)
        changed = changed_by(reference, lessons, parameters)
        inputs.append(sharing.by_rows(seen, changed))
        wanted.append(space.difference(parameters, space.neutral(len(lessons))))
    return choose_ridge(torch.cat(inputs), torch.cat(wanted), seed, torch.arange(len(lessons)).repeat(CHANGES))


def traces(tokens: Tokens, images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n f"]:
    """What a change may be seen by: pooled tokens, and statistics of the pixels."""
    return torch.cat([tokens.values.float().mean(1).cpu(), channel_statistics(images.float() / 255)], dim=1)


def possible(space: ActionSpace, actions: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The actions with whole flags."""
    graded = torch.tensor([transformation.graded for transformation in space.transformations])
    return torch.where(graded, actions, actions.round().clamp(-1, 1))


def undo_on(
    o: Probe, model: ImageWorldModel, train: ImageSet, pictures: Pictures, session: Session
) -> dict[str, Retrieval]:
    """`look_undone`, learning from training images."""
    rows = draw_rows(LESSONS, len(train), o.seed)
    lessons = load_with_crops(Subset(train, rows), pictures.gallery.shape[-1], AREA, o.seed, rows)[1]
    with session.autocast():
        return look_undone(model, pictures, lessons, o.seed, student=o.student)


# ---- the probe -----------------------------------------------------------------------------------------------------


def measure(
    o: Probe, way: FeatureProbe, encoder: FrozenEncoder, other: FrozenEncoder | None, session: Session
) -> Outcome:
    """The instance probe of an encoder and its controls. Raises UserError for a source that cannot be read, and with
    `undo` for a RUN without predictor."""
    model = open_world(o.run, session) if o.undo else None
    size = encoder.size
    train, held, how = open_splits(o.data, o.val, size=size)
    space = reference_space(encoder.space or ActionSpace.from_config(config.Actions(), size), size)
    pictures = draw_pictures(held, o.gallery, space, size, o.seed)
    numbers: dict[str, Any] = {"n_val": len(pictures.gallery), "held_out": len(held), "seeds": way.seeds}
    numbers |= {"chance": 1 / len(pictures.gallery), "mrr_chance": chance(len(pictures.gallery))}
    encoders = {"": encoder}
    if o.baselines:
        numbers["seeds"] |= {"random_encoder": o.seed + 1}
        encoders["random_encoder_"] = encoder.drawn_anew(o.seed + 1)
    retrievals: dict[str, Retrieval] = {}
    for name, each in encoders.items():
        retrievals |= _named(name, look_for(each, pictures, way.pooling, session))
    if o.baselines:
        numbers["raw_pixels_side"], by_pixels = look_by_pixels(pictures, size, session)
        retrievals |= _named("raw_pixels_", by_pixels)
    if other is not None:
        shown = pictures if other.size == size else draw_pictures(held, o.gallery, space, other.size, o.seed)
        numbers |= {"other_encoder": o.encoder, "other_encoder_size": other.size}
        retrievals |= _named("other_encoder_", look_for(other, shown, way.pooling, session))
    if model is not None:
        retrievals |= undo_on(o, model, train, pictures, session)
    numbers |= summary(retrievals, o.seed)
    return Outcome(
        data=held.name,
        payload={"data": held.name, "split": how, "changes": space.set, **numbers},
        settings={name: getattr(o, name) for name in ("kind", "seed", "pooling", "gallery", "undo")},
        figures={
            "": lambda: draw_bars(numbers, held.name),
            "nearest": lambda: draw_nearest(pictures, retrievals[""]),
        },
    )


def _named(encoder: str, retrievals: Mapping[str, Retrieval]) -> dict[str, Retrieval]:
    """The retrievals, the beginning of an encoder's keys in front of their names."""
    return {f"{encoder}{name}": each for name, each in retrievals.items()}


def summary(retrievals: Mapping[str, Retrieval], seed: int) -> dict[str, float]:
    """top1 and mrr of everything that was looked for, with errors by bootstrap over the images; "" is this encoder by
    changed crops, beside which stands the error of the difference of its top1 and each control's."""
    numbers: dict[str, float] = {}

    def error(values: Float[Tensor, " n"]) -> float:
        per_image = values.numpy()
        return bootstrap_error(lambda weights: weights @ per_image / len(per_image), len(per_image), seed)

    for name, each in retrievals.items():
        for key, values in (("top1", each.first), ("mrr", 1 / each.rank)):
            numbers |= {f"{name}{key}": float(values.mean()), f"{name}{key}_standard_error": error(values)}
    pairs = [("", name) for name in ("random_encoder_", "raw_pixels_")]
    for ours, control in [*pairs, ("undo_inferred_", "target_"), ("undo_known_", "target_")]:
        if ours in retrievals and control in retrievals:
            name = f"{ours or control}difference_standard_error"
            numbers[name] = error(retrievals[ours].first - retrievals[control].first)
    return numbers


def show(numbers: Mapping[str, Any]) -> None:
    """Print who finds how many of the images again, and among how many."""
    rows = []
    for name, words in _encoders(numbers).items():
        rows.append([words, *(numbers[f"{name}{key}"] for key in ("crop_top1", "crop_mrr", "top1", "mrr"))])
    for name, words in UNDO.items():
        if f"{name}top1" in numbers:
            rows.append([words, None, None, numbers[f"{name}top1"], numbers[f"{name}mrr"]])
    rows.append(["chance", *(2 * [numbers["chance"], numbers["mrr_chance"]])])
    columns = ["", "crop: top-1", "MRR", "changed: top-1", "MRR"]
    console.print(table(f"The same image found again, {numbers['data']}", columns, rows))
    count, held = numbers["n_val"], numbers["held_out"]
    console.print(
        f"{count:,} of {held:,} held-out images in the gallery, chance {numbers['chance']:.4f}; standard error of the "
        f"changed crops' top-1 {numbers['top1_standard_error']:.3f}."
    )


def _encoders(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Who looked, in words, by the beginning of the keys."""
    names = dict(ENCODERS)
    names |= {f"{name}last_block_": f"{words}, last block" for name, words in ENCODERS.items()}
    names["other_encoder_"] = str(numbers.get("other_encoder"))
    names["other_encoder_last_block_"] = f"{numbers.get('other_encoder')}, last block"
    side = numbers.get("raw_pixels_side")
    names["raw_pixels_"] += f" {side} x {side}"
    return {name: words for name, words in names.items() if f"{name}top1" in numbers}


# ---- pictures of results -------------------------------------------------------------------------------------------


def draw_bars(numbers: Mapping[str, Any], data: str) -> Figure:
    """Who finds how many of the images again."""
    undone = {name: words for name, words in UNDO.items() if f"{name}top1" in numbers}
    series = {}
    for name, words in _encoders(numbers).items():
        own = [numbers[f"{name}crop_top1"], numbers[f"{name}top1"]]
        series[words] = own + [math.nan if name else numbers[f"{key}top1"] for key in undone]
    groups = ["crop", "changed crop", *undone.values()]
    title = f"The same image found again among {numbers['n_val']:,}, {data}"
    return grouped_bars(title, "top-1", groups, series, {"chance": numbers["chance"]})


def draw_nearest(pictures: Pictures, retrieval: Retrieval) -> Figure:
    """Some changed crops, the image each was cut from, and the gallery's nearest; the right one is framed."""
    chosen = np.linspace(0, len(pictures.gallery) - 1, min(SHOWN, len(pictures.gallery))).astype(np.int64)
    count = retrieval.nearest.shape[1]
    side, gap, margin, head = 1.1, 0.1, 0.14, 0.36
    starts = [margin + place * (side + gap) + (0.2 if place > 1 else 0) for place in range(2 + count)]
    figure = drawing.blank(starts[-1] + side + margin, head + len(chosen) * (side + gap) + 0.04)
    for start, words in zip(starts, ("image", "changed crop", "nearest in the gallery"), strict=False):
        put_words(figure, words, start, 0.1, 9.5, weight="bold")
    for number, row in enumerate(chosen.tolist()):
        top = head + number * (side + gap)
        put_picture(figure, pictures.gallery[row], starts[0], top, side)
        put_picture(figure, pictures.changed[row], starts[1], top, side)
        for start, index in zip(starts[2:], retrieval.nearest[row].tolist(), strict=True):
            axes = put_picture(figure, pictures.gallery[index], start, top, side)
            right = index == row
            axes.spines[:].set(visible=True, color=GREEN if right else GREY, linewidth=2.6 if right else 0.5)
    return figure
