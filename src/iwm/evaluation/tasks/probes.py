"""Probes: what a frozen encoder's features are good for, beside a random encoder's and raw pixels.

Whatever is chosen (l2, learning rate, size of the raw pixels) is chosen on a seeded tenth of the training images, of a
small set on several (`linear.tenths_of`), and then fitted to all of them; the test images are looked at once, at the
end. `probe_kinds` has the kinds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iwm.data.image_sets import require_labels
from iwm.data.sources import LabelledSplits, labelled_splits
from iwm.evaluation import ritual
from iwm.evaluation.grids import best_of, grid_ends, untried
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import features, instance
from iwm.evaluation.tasks.features import RAW_SIZES, FrozenEncoder, RawPixels
from iwm.evaluation.tasks.fitting import accuracy, scores
from iwm.evaluation.tasks.probe_kinds import PROBES, FeatureProbe, probe_of
from iwm.evaluation.uncertainty import accuracy_errors, is_unbalanced, majority_top1
from iwm.run_folder import identity_if_any, plain_name
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.runtime.drawing import blank, drawable
from iwm.runtime.errors import UserError
from iwm.verbs.probe import GALLERY, Probe, ProbeSettings
from iwm.verbs.shared import LEARNING_RATES, Source

SHOWN = (
    *("encoder", "layer", "layers", "pooling", "top1", "top1_standard_error", "top5", "balanced_top1"),
    *("random_encoder_top1", "last_block_top1", "random_encoder_last_block_top1", "raw_pixels_top1"),
    *("other_encoder", "other_encoder_top1", "other_encoder_last_block_top1", "chance", "n_train", "n_val"),
)

LAST_BLOCK = ("last_block_top1", "last_block_top1_standard_error")


def open_labelled(o: Source, size: int) -> LabelledSplits:
    """The splits of a verb's source, whose origin is printed. Raises UserError, see `labelled_splits`."""
    splits = labelled_splits(o.data, o.val, size=size)
    console.print(f"{splits.sentence}.")
    return splits


def facts_of_source(splits: LabelledSplits) -> dict[str, Any]:
    """What every result says of a labelled source: chance among the classes that have training images, and how many
    test images are right where always the class that is most frequent in training is said (of equals the first)."""
    _, labels = require_labels(splits.train)
    _, truth = require_labels(splits.val)
    return {
        "data": splits.train.name,
        "chance": 1 / len(np.unique(labels)),
        "majority_top1": majority_top1(labels, truth),
        "split": splits.sentence,
    }


def printing(title: str, names: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
    """`ritual.printing` of a result on a labelled source: the most frequent class stands beside chance where the data
    are unbalanced."""
    place = names.index("chance") + 1
    beside = (*names[:place], "majority_top1", *names[place:])
    return lambda content: ritual.printing(title, beside if is_unbalanced(content) else names)(content)


# ---- the verb ------------------------------------------------------------------------------------------------------


def probe(o: Probe) -> dict[str, Any]:
    """Probe a RUN (or timm:NAME[,weights=PATH]) on a source, labelled unless `kind` is "instance"; writes
    RUN/eval/probe-KIND-DATA.json and pictures beside it, returns the result.

    `encoder`, another RUN or timm model, is seen at its own image size unless `size` says otherwise. Raises UserError
    for bad input, see `labelled_splits`.
    """
    PROBES.find(o.kind)
    with ritual.evaluation("probe", o) as work:
        way = probe_of(o, work.session)
        _refuse(o, way)
        encoder = features.open_encoder(o.run, student=o.student, layer=o.layer, layers=o.layers, size=o.size)
        other = features.open_encoder(o.encoder, layers=o.layers, size=o.size) if o.encoder else None
        other_weights = identity_if_any(o.encoder) if o.encoder else ""
        if way.needs_labels:
            outcome = _of_classes(o, way, encoder, other, work.folder.cache)
        else:
            outcome = instance.measure(o, way, encoder, other, work.session)
        layers = {"layers": encoder.layers} if encoder.layers else {}
        looked_at = {"encoder": encoder.name, "layer": encoder.layer, "depth": encoder.depth, "pooling": way.pooling}
        settings = {
            **outcome.settings,
            **ritual.identities(data=o.data, val=o.val),
            "student": o.student,
            "layer": encoder.layer,
            **layers,
            "size": encoder.size,
            "baselines": o.baselines,
            **({"beside": ritual.run_identity(o.encoder, o.encoder)} if o.encoder else {}),
        }
        outcome = replace(
            outcome,
            payload={
                "kind": o.kind,
                **outcome.payload,
                **looked_at,
                **layers,
                **({"other_encoder_weights": other_weights} if other_weights else {}),
                "image_size": encoder.size,
            },
            settings=settings,
            contains=[{**settings, "undo": False}] if o.undo else [],
            variant=_variant(o, encoder, way),
        )
        return work.conclude(outcome, lambda content: _show(content, way))


def _refuse(o: Probe, way: FeatureProbe) -> None:
    """Raises UserError for options that would do nothing."""
    if o.layers and way.pooling == "tokens":
        raise UserError(f"--kind {o.kind} reads the tokens of one block, not pooled ones; leave out --layers.")
    if way.needs_labels and (o.undo or o.gallery != GALLERY):
        raise UserError(
            f"--{'undo' if o.undo else 'gallery'} belongs to --kind instance; leave it out with --kind {o.kind}."
        )


def _of_classes(
    o: Probe, way: FeatureProbe, encoder: FrozenEncoder, other: FrozenEncoder | None, cache: Path
) -> Outcome:
    """A probe that tells classes apart. Raises UserError, see `labelled_splits`."""
    splits = open_labelled(o, encoder.size)
    numbers = _numbers(encoder, splits, way, cache, baselines=o.baselines)
    if other is not None:
        numbers |= _numbers_beside(other, o, splits if other.size == encoder.size else None, way, cache)
    title = f"{_title(o.kind, encoder.name, splits.train.name)}: {numbers['top1']:.1%}"
    return Outcome(
        data=splits.train.name,
        payload={**facts_of_source(splits), **numbers, "classes": list(splits.classes)},
        # Kinds that search no learning rates are recognised by the grid that older results of theirs hold.
        settings=ritual.settings_of(o if way.searches_lrs else replace(o, lrs=LEARNING_RATES), ProbeSettings),
        figures={"": lambda: confusion_matrix(numbers, splits.classes, title)},
    )


def _title(kind: str, encoder: str, data: str) -> str:
    return f"{kind} probe, {encoder}, {data}"


def _show(content: Mapping[str, Any], way: FeatureProbe) -> None:
    if way.needs_labels:
        printing(_title(content["kind"], content["encoder"], content["data"]), SHOWN)(content)
    else:
        instance.show(content)
    if sentence := sentence_of_draws(content):
        console.print(sentence)


DRAWS = {
    "head": "the first weights of the head",
    "batches": "the order of the images",
    "random_encoder": "the weights of the random encoder",
    "gallery": "the images of the gallery",
    "crops": "the crops",
    "changes": "the changes",
}
"""What is drawn by each of a result's "seeds", the tenth aside."""


def sentence_of_draws(content: Mapping[str, Any]) -> str:
    """What of a result was drawn at random, and by which seeds; "" where nothing was."""
    several = content.get("tenths", 1) > 1
    tenth = f"the {content['tenths']} tenths" if several else "the tenth"
    tenth += f" of the training images that choose{'' if several else 's'} "
    words = DRAWS | {"tenth": tenth + ("settings" if content.get("tried") else "the size of the raw pixels")}
    seeds = dict(content["seeds"])
    if not content.get("tried") and not content.get("raw_pixels_tried"):
        seeds.pop("tenth", None)  # it was not needed, or could not be held out
    parts = [f"{words.get(name, name.replace('_', ' '))} (seed {seed})" for name, seed in seeds.items()]
    return f"Drawn at random: {', '.join(parts)}." if parts else ""


def _variant(o: Probe, encoder: FrozenEncoder, way: FeatureProbe) -> list[str]:
    """The words of the result's name."""
    layer = f"layer{encoder.layer}" if encoder.layer < encoder.depth else ""
    beside = plain_name(f"beside-{o.encoder.split(',')[0].split('/')[-1]}") if o.encoder else ""
    layers = f"layers{encoder.layers}" if encoder.layers else ""
    return [o.kind, "student" * o.student, layer, layers, *way.words, f"seed{o.seed}" if o.seed else "", beside]


def _numbers(
    encoder: FrozenEncoder, splits: LabelledSplits, way: FeatureProbe, cache: Path | None, *, baselines: bool
) -> dict[str, Any]:
    """The probe itself and its baselines, on features extracted in one pass over the images."""
    seeds = way.seeds
    encoders = {"": encoder}
    if baselines:
        seeds = {"tenth": way.settings.seed} | seeds | {"random_encoder": way.settings.seed + 1}
        encoders["random_encoder_"] = encoder.drawn_anew(seeds["random_encoder"])
    several = bool(encoder.layers)
    encoders = {name: each.reading(each.layers, last_too=several) for name, each in encoders.items()}
    if way.pooling == "tokens":
        count = len(splits.train) + len(splits.val)
        features.require_memory(list(encoders.values()), count, way.session)
    train, test = (
        features.extract(list(encoders.values()), images, pooling=way.pooling, session=way.session, cache=cache)
        for images in (splits.train, splits.val)
    )
    lessons, exams = (
        {
            name + part: values
            for (name, each), whole in zip(encoders.items(), split.features, strict=True)
            for part, values in features.apart(each, whole, way.pooling, way.session).items()
        }
        for split in (train, test)
    )
    answers = {name: way.evaluate(lessons[name], train.labels, exams[name], len(splits.classes)) for name in lessons}
    ours = answers.pop("")
    numbers = {
        **scores(ours.logits, test.labels),
        "chosen": ours.chosen,
        "tried": ours.tried,
        "at_grid_end": ours.at_grid_end,
        "n_train": len(train.labels),
        "n_val": len(test.labels),
        "tenths": way.tenths(len(train.labels)),
        "seeds": seeds,
    }
    for name, answer in answers.items():
        numbers |= {f"{name}top1": accuracy(answer.logits, test.labels), f"{name}chosen": answer.chosen}
        numbers[f"{name}at_grid_end"] = answer.at_grid_end
    if baselines:
        numbers |= raw_pixels(splits, encoder.size, way.settings, way.session)
    return numbers | accuracy_errors(numbers, numbers["n_val"])


def _numbers_beside(
    other: FrozenEncoder, o: Probe, splits: LabelledSplits | None, way: FeatureProbe, cache: Path
) -> dict[str, Any]:
    """Those of another encoder through the same probe; `splits` where they have its size already."""
    splits = splits or labelled_splits(o.data, o.val, size=other.size)
    numbers = _numbers(other, splits, way, cache, baselines=False)
    return {
        "other_encoder": o.encoder,
        "other_encoder_size": other.size,
        **{
            f"other_encoder_{key}": numbers[key]
            for key in ("top1", "top1_standard_error", "chosen", "at_grid_end", *LAST_BLOCK)
            if key in numbers
        },
    }


def raw_pixels(splits: LabelledSplits, size: int, settings: ProbeSettings, session: Session) -> dict[str, Any]:
    """The same probe on the pixels themselves at 8, 16 and 32 px, the size chosen on the tenth like everything else.

    Pixels are no tokens: beside a probe of tokens they get the linear one, as "raw_pixels_probe" says.
    """
    if probe_of(settings, session).pooling == "tokens":
        settings = replace(settings, kind="linear")
    sides = [side for side in RAW_SIZES if side <= size] or [size]
    pixels = [RawPixels(side, size) for side in sides]
    train, test = (features.extract(pixels, images, session=session) for images in (splits.train, splits.val))
    way, classes = probe_of(settings, session), len(splits.classes)
    tenths = [way.on_tenth(values, train.labels, classes) for values in train.features]
    rows = [{"side": side, "tenth_top1": top1} for side, (top1, _) in zip(sides, tenths, strict=True)]
    rows = [row for row in rows if not math.isnan(row["tenth_top1"])]  # none where there is no tenth
    side = best_of(rows)["side"] if rows else untried([{"side": side} for side in sides])["side"]
    best = sides.index(side)
    answer = way.evaluate(train.features[best], train.labels, test.features[best], classes, tenths[best][1])
    return {
        "raw_pixels_top1": accuracy(answer.logits, test.labels),
        "raw_pixels_side": side,
        "raw_pixels_probe": settings.kind,
        "raw_pixels_tried": rows,
        "raw_pixels_at_grid_end": {**answer.at_grid_end, **grid_ends({"side": side}, rows)},
    }


# ---- picture -------------------------------------------------------------------------------------------------------


def confusion_matrix(numbers: Mapping[str, Any], classes: Sequence[str], title: str) -> Figure:
    """The "confusion" among a classifier's `scores`: rows are the truth, shaded by the share of the class."""
    confusion, count = np.array(numbers["confusion"]), len(classes)
    classes = [drawable(name) for name in classes]
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 2.5 + 0.42 * count)
    figure = blank(side, side)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(drawable(title), fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if count <= 50:
        axes.set_xticks(range(count), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(count), classes, fontsize=7)
    if count <= 25:
        for truth, guess in np.argwhere(confusion > 0):
            colour = "white" if share[truth, guess] > 0.5 else "black"
            text = str(confusion[truth, guess])
            axes.text(guess, truth, text, ha="center", va="center", fontsize=6, color=colour)
    return figure
