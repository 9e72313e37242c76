"""How much is gained by each finetuned parameter (paper figure 3): top-1 against the number of parameters that learn.

    predictor, k blocks    the first k of the pretrained predictor's blocks, or k random ones, on the frozen encoder
    last-K                 the encoder's last K blocks under a linear classifier on the mean token
    head                   the attentive head alone

Every point has the same pictures, the same grid of learning rates and the same number of epochs. The points are kept in
one file that is written after each of them, so what was interrupted goes on where it stopped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from iwm import run_folder
from iwm.config import Speed
from iwm.data.sources import labelled_splits, source_identity
from iwm.evaluation import ritual
from iwm.evaluation.tasks.finetune import FinetuneSettings, Work, trainable_of
from iwm.evaluation.tasks.fitting import scores
from iwm.evaluation.uncertainty import accuracy_error
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices
from iwm.runtime.console import console, table
from iwm.runtime.drawing import BLUE, GREEN, GREY, INK, ORANGE, blank, finite, save, style_axes
from iwm.runtime.errors import UserError

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
    settings: FinetuneSettings


def points_of(
    model: ImageWorldModel, settings: FinetuneSettings, depths: Sequence[int] = (), blocks: Sequence[int] = ()
) -> list[Point]:
    """The points of the figure: head, predictors of several depths, pretrained and random, and last-K encoder blocks.

    By default one block, half and all of the predictor; 1, 2 and 4 blocks of the encoder as far as it has them. Raises
    UserError for a number of blocks that there is not.
    """
    whole, tall = model.settings.predictor.depth, model.settings.encoder.depth
    depths = sorted(set(depths or (1, max(1, whole // 2), whole)))
    blocks = sorted(set(blocks or (count for count in (1, 2, 4) if count <= tall)))
    for name, asked, there in (("--depths", depths, whole), ("--blocks", blocks, tall)):
        if asked[0] < 1 or asked[-1] > there:
            wrong = asked[0] if asked[0] < 1 else asked[-1]
            raise UserError(f"{name} {wrong}: there are {there} blocks; give numbers from 1 to {there}.")
    found = [Point("attentive head", "head", replace(settings, train="head", predictor="pretrained", depth=0))]
    for start in ("pretrained", "random"):
        for depth in depths:
            tuned = replace(settings, train="predictor", predictor=start, depth=depth)
            found.append(Point(f"{start} predictor, {depth} of {whole} blocks", start, tuned))
    for count in blocks:
        tuned = replace(settings, train=f"last-{count}", predictor="pretrained", depth=0)
        found.append(Point(f"last {count} of {tall} encoder blocks", "encoder", tuned))
    return found


def efficiency(
    run: str,
    data: str,
    *,
    val: str = "",
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    depths: Sequence[int] = (),
    blocks: Sequence[int] = (),
    size: int = 0,
    speed: Speed | None = None,
    out: str = "",
) -> dict[str, Any]:
    """Measure the points of figure 3 for a RUN, write `RUN/eval/efficiency-DATA.json` and .png, print and return it.

    Points that the file already holds with the same settings are not measured again, and those of other depths or
    blocks stay in it. Raises UserError for bad input.
    """
    settings = replace(settings or FinetuneSettings(), seed=seed)
    if run.startswith("timm:"):
        raise UserError(f"{run} has no predictor to finetune; give a RUN.")
    speed = speed or Speed()
    model = run_folder.load_model(run)
    model.require_predictor()
    size = size or model.settings.data.image_size
    wanted = points_of(model, settings, depths, blocks)
    splits = labelled_splits(data, val, size=size)
    console.print(f"{splits.train.name}: {splits.sentence}.")
    common = {
        **{k: v for k, v in vars(settings).items() if k not in ("train", "predictor", "depth")},
        "schedule": vars(settings.schedule),
        "data": source_identity(data),
        "val": source_identity(val) if val else "",
        "run": ritual.run_identity(run, out),
        "size": size,
        "weights": run_folder.identity(run),
    }
    path = ritual.place(run, "efficiency", splits.train.name, common, variant=f"seed{seed}" if seed else "", out=out)
    there = {point["what"]: point for point in run_folder.read_result(path).get("points", [])}
    missing = [point for point in wanted if point.what not in there]
    if len(missing) < len(wanted):
        console.print(f"{len(wanted) - len(missing)} of {len(wanted)} points are there already.")
    with devices.threads(speed):
        payload = {
            "run": run,
            "data": splits.train.name,
            "chance": 1 / len(splits.classes),
            "encoder": "student encoder" if settings.student else "EMA encoder",
            "image_size": size,
            "precision": devices.precision_of(speed, devices.device_of(speed)),
            "split": splits.sentence,
        }
        work = Work.prepare(splits, settings, size, speed) if missing else None
        for number, point in enumerate(missing, start=1):
            assert work is not None
            console.print(f"Point {number} of {len(missing)}: {point.what}")
            there[point.what] = _measure(model, work, point, len(splits.classes))
            _write(path, payload, there, common)
        content = _write(path, payload, there, common)
    rows = [(p["what"], p["trainable_parameters"], p["top1"]) for p in content["points"]]
    title = f"Finetuning efficiency of {run_folder.run_folder(run, out).resolve().name} on {splits.train.name}"
    console.print(table(title, ["what", "trainable parameters", "top-1"], rows))
    console.print(f"Written to {path}", soft_wrap=True, markup=False)
    return {**content, "path": str(path)}


def _measure(model: ImageWorldModel, work: Work, point: Point, classes: int) -> dict[str, Any]:
    trained, classifier, logits, fed = work.fit(model, point.settings, classes, "", point.what)
    found = scores(logits, work.labels)
    return {
        "what": point.what,
        "family": point.family,
        "trainable_parameters": trainable_of(classifier),
        **{name: found[name] for name in ("top1", "top5", "top5_is", "balanced_top1")},
        "train_images_per_second": trained.images_per_second,
        "chosen": trained.choice,
        "tried": trained.tried,
        "n_train": len(work.train.labels),
        "n_val": len(work.labels),
        "train": point.settings.train,
        "predictor": point.settings.predictor if point.settings.uses_predictor else None,
        "predictor_depth": point.settings.depth or None,
        **fed,
    }


def _write(
    path: Path, payload: dict[str, Any], there: dict[str, dict[str, Any]], common: dict[str, Any]
) -> dict[str, Any]:
    """Write what is there so far, and its picture."""
    order = {family: place for place, family in enumerate(FAMILIES)}
    points = sorted(there.values(), key=lambda point: (order[point["family"]], point["trainable_parameters"]))
    content = ritual.write(path, {**payload, "points": points}, common)
    save(draw(points, payload["chance"], payload["data"]), path.with_suffix(".png"))
    return content


def draw(points: Sequence[dict[str, Any]], chance: float, data: str) -> Figure:
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
