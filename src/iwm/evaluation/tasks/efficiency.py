"""How much is gained by each finetuned parameter (paper figure 3): top-1 against the number of parameters that learn.

    predictor, k blocks    the first k of the pretrained predictor's blocks, or k random ones, on the frozen encoder
    last-K                 the encoder's last K blocks under a linear classifier on the mean token
    head                   the attentive head alone

Every point has the same pictures, the same grid of learning rates and the same number of epochs. The points are kept in
one file that is written after each of them, so what was interrupted goes on where it stopped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from iwm import run_folder
from iwm.data.sources import LabelledSplits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Evaluation, Outcome
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.finetune import ClassificationWork
from iwm.evaluation.tasks.fitting import scores
from iwm.evaluation.tasks.probes import facts_of_source, open_labelled
from iwm.evaluation.tasks.tuning import training_of
from iwm.evaluation.uncertainty import accuracy_error, accuracy_errors, is_unbalanced
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import read_result
from iwm.runtime import sharing
from iwm.runtime.console import console, table
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE, blank, finite, style_axes
from iwm.runtime.errors import UserError
from iwm.verbs.efficiency import Efficiency
from iwm.verbs.shared import Classification

TRAINING = ("trainable_parameters", "train_images_per_second", "chosen", "tried", "at_grid_end")
"""What a point says of its training."""
FAMILIES = {
    "pretrained": ("predictor, pretrained", BLUE, "o", (-9, 6)),
    "random": ("predictor, random", ORANGE, "s", (-9, -14)),
    "encoder": ("last encoder blocks", GREEN, "^", (4, -13)),
    "head": ("attentive head only", INK, "D", (5, 5)),
}
"""Ways to finetune in the order in which they are measured: name, colour, marker, where numbers stand beside points."""


@dataclass(frozen=True)
class Point:
    """One way to finetune: its name, its family, its settings."""

    what: str
    family: str
    settings: Classification


def points_of(model: ImageWorldModel, o: Efficiency) -> list[Point]:
    """The points of the figure: head, predictors of several depths, pretrained and random, and last-K encoder blocks.

    By default one block, half and all of the predictor; 1, 2 and 4 blocks of the encoder as far as it has them. Raises
    UserError for a number of blocks that there is not.
    """
    whole, tall = model.settings.predictor.depth, model.settings.encoder.depth
    depths = sorted(set(o.depths or (1, max(1, whole // 2), whole)))
    blocks = sorted(set(o.blocks or (count for count in (1, 2, 4) if count <= tall)))
    for name, counts, there in (("--depths", depths, whole), ("--blocks", blocks, tall)):
        if counts[0] < 1 or counts[-1] > there:
            wrong = counts[0] if counts[0] < 1 else counts[-1]
            raise UserError(f"{name} {wrong}: there are {there} blocks; give numbers from 1 to {there}.")
    points = [Point("attentive head", "head", replace(o, train="head", predictor="pretrained", depth=0))]
    for start in ("pretrained", "random"):
        for depth in depths:
            settings = replace(o, train="predictor", predictor=start, depth=depth)
            points.append(Point(f"{start} predictor, {depth} of {whole} blocks", start, settings))
    for count in blocks:
        settings = replace(o, train=f"last-{count}", predictor="pretrained", depth=0)
        points.append(Point(f"last {count} of {tall} encoder blocks", "encoder", settings))
    return points


def efficiency(o: Efficiency) -> dict[str, Any]:
    """Measure the points of figure 3 for a RUN; writes RUN/eval/efficiency-DATA.json and .png, returns the result.

    Points that the file already holds with the same settings are not measured again, and those of other depths or
    blocks stay in it. Raises UserError for bad input.
    """
    with ritual.evaluation("efficiency", o) as work:
        model = work.world_model()
        model.require_predictor()
        size = o.size or model.settings.data.image_size
        splits = open_labelled(o, size)
        outcome = outcome_of(o, work, splits, size)
        points, missing = points_left(work, outcome, splits, points_of(model, o))
        if missing:
            task = ClassificationWork.prepare(splits, o, size, work.session)
            for number, point in enumerate(missing, start=1):
                console.print(f"Point {number} of {len(missing)}: {point.what}")
                points[point.what] = _measure(model, task, point)
                work.write(_with_points(outcome, points))
        title = f"Finetuning efficiency of {work.folder.name} on {splits.train.name}"
        return work.conclude(_with_points(outcome, points), lambda content: _show(content, title))


def points_left(
    work: Evaluation, outcome: Outcome, splits: LabelledSplits, wanted: Sequence[Point]
) -> tuple[dict[str, dict[str, Any]], list[Point]]:
    """The points that the file holds of the same images, by name, and those of `wanted` that it lacks; says both."""
    there = sharing.by_first(lambda: read_result(work.place(outcome)).get("points", []))
    counts = (len(splits.train), len(splits.val))
    points = {point["what"]: point for point in there if (point["n_train"], point["n_val"]) == counts}
    if changed := len(there) - len(points):
        others = f"measured on other images of {splits.train.name} and are left out"
        console.print(f"{changed} of {len(there)} points were {others}.")
    missing = [point for point in wanted if point.what not in points]
    if len(missing) < len(wanted):
        console.print(f"{len(wanted) - len(missing)} of {len(wanted)} points are there already.")
    return points, missing


def outcome_of(o: Efficiency, work: Evaluation, splits: LabelledSplits, size: int) -> Outcome:
    """The result but for its points."""
    varied = ("train", "predictor", "depth")
    common = {name: value for name, value in ritual.settings_of(o, Classification).items() if name not in varied}
    return Outcome(
        data=splits.train.name,
        payload={
            **facts_of_source(splits),
            "encoder": features.name_of(o.student),
            "image_size": size,
            "augmentation": o.augmentation,
        },
        settings={
            **common,
            **ritual.identities(data=o.data, val=o.val),
            "size": size,
            "weights": run_folder.identity(o.run),
        },
        variant=(f"seed{o.seed}" if o.seed else "",),
    )


def _with_points(outcome: Outcome, points: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """The result with the points that are there, and its picture."""
    order = {family: place for place, family in enumerate(FAMILIES)}
    rows = sorted(points.values(), key=lambda point: (order[point["family"]], point["trainable_parameters"]))
    figure = partial(draw, rows, outcome.payload["chance"], outcome.data)
    return replace(outcome, payload={**outcome.payload, "points": rows}, figures={"": figure})


def _measure(model: ImageWorldModel, task: ClassificationWork, point: Point) -> dict[str, Any]:
    finetuning = task.fit(model, point.settings, title=point.what)
    accuracies = scores(finetuning.logits, task.labels)
    training = training_of(finetuning.model, finetuning.trained)
    return {
        "what": point.what,
        "family": point.family,
        **{name: accuracies[name] for name in ("top1", "top5", "top5_is", "balanced_top1")},
        **accuracy_errors(accuracies, len(task.labels)),
        **{name: training[name] for name in TRAINING},
        "n_train": len(task.samples.labels),
        "n_val": len(task.labels),
        "train": point.settings.train,
        "predictor": point.settings.predictor if point.settings.uses_predictor else None,
        "predictor_depth": point.settings.depth or None,
        **finetuning.feeding,
    }


def _show(content: Mapping[str, Any], title: str) -> None:
    rows = [(point["what"], point["trainable_parameters"], point["top1"]) for point in content["points"]]
    if is_unbalanced(content):
        rows += [("chance", None, content["chance"]), ("the most frequent class", None, content["majority_top1"])]
    console.print(table(title, ["what", "trainable parameters", "top-1"], rows))


# ---- picture -------------------------------------------------------------------------------------------------------


def draw(points: Sequence[Mapping[str, Any]], chance: float, data: str) -> Figure:
    """The paper's figure 3: top-1 against the number of finetuned parameters, on a logarithmic axis.

    A point has "family", "trainable_parameters", "top1", "n_val" and how many blocks ("predictor_depth", or K of
    "last-K"); bars are one standard error over the test images. Raises UserError without points.
    """
    if not points:
        raise UserError("There are no points to draw; measure one first.")
    figure = blank(7.4, 4.6)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    axes = figure.add_subplot()
    style_axes(axes, f"Finetuning efficiency on {data}")
    axes.set_xscale("log")
    counts = [point["trainable_parameters"] for point in points]
    axes.set_xlim(min(counts) / 1.6, max(counts) * 1.8)  # first: a single point has no extent of its own
    for family, (name, colour, marker, beside) in FAMILIES.items():
        line = sorted((p for p in points if p["family"] == family), key=lambda p: p["trainable_parameters"])
        if not line:
            continue
        x = [p["trainable_parameters"] for p in line]
        y = [finite(p["top1"]) for p in line]
        error = [accuracy_error(top1, p["n_val"]) for top1, p in zip(y, line, strict=True)]
        axes.errorbar(x, y, error, color=colour, marker=marker, markersize=5.5, linewidth=1.6, elinewidth=1, label=name)
        for point, parameters, top1 in zip(line, x, y, strict=True):
            count = point["train"].removeprefix("last-") if family == "encoder" else point["predictor_depth"]
            if count and math.isfinite(top1):
                axes.annotate(
                    str(count), (parameters, top1), beside, textcoords="offset points", fontsize=8, color=colour
                )
    axes.axhline(chance, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("parameters that learn (the numbers are blocks)", fontsize=8.5, color=INK)
    axes.set_ylabel("top-1", fontsize=8.5, color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="best")
    return figure


def _short_count(value: float) -> str:
    """20000 as 20k, 1500000 as 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
