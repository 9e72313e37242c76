"""Looking into a world model: maps of its tokens, what a change moves, and what is left when changes are averaged out.

maps       tokens of source, prediction and truth, less the usual one of each position, coloured by principal components
change     |p - target(y)|^2 and |target(x) - target(y)|^2 per patch (paper appendix I)
averaged   z_K = mean over K random actions of pool p(f(x), a_k), probed against K (appendix G)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from tyro.conf import Positional

from iwm import config, run_folder
from iwm.actions.action_space import reference_space
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import labelled_splits, open_splits, source_identity
from iwm.data.splits import draw_rows
from iwm.evaluation import ritual
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import full_precision
from iwm.evaluation.tasks.probes import ProbeSettings, evaluate
from iwm.evaluation.world import composition
from iwm.evaluation.world.imagine import carried
from iwm.evaluation.world.undo import labelled, pooled_prediction
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import console as console_
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress
from iwm.runtime.errors import UserError


@dataclass(frozen=True)
class Look:
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    data: str
    """A source of images; with labels, averaging over actions is probed too."""
    val: str = ""
    """Source of the images that are shown and reported on; by default the source's own."""
    images: int = 500
    """Training images and, as many, test images of the probes; a tenth of them is changed twice in a row."""
    views: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of random actions that are averaged."""
    shown: int = 4
    """Images in the picture; after them everything the source may carry is undone once."""
    seed: int = 0
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def look(o: Look) -> dict[str, Any]:
    """Look into a RUN; writes RUN/eval/look-DATA.json and .png (and a second picture where there are labels), prints
    and returns what was written. Raises UserError for numbers that ask nothing and a RUN without predictor."""
    if o.images < 20 or o.shown < 1 or o.seed < 0 or not o.views or min(o.views) < 1:
        raise UserError("iwm look needs --images 20, --shown 1, --views 1 and --seed 0 or more.")
    model = run_folder.open_world(o.run, o.speed)
    size = model.settings.data.image_size
    train, held, how = open_splits(o.data, o.val, size=size)
    precision = devices.precision_of(o.speed, model.device)
    with devices.threads(o.speed), devices.autocast(model.device, precision):
        learned, shown = (
            load_all(Subset(images, draw_rows(count, len(images), o.seed)), size)[0]
            for images, count in ((train, o.images), (held, max(o.shown, o.images // 10)))
        )
        maps = rows_of(model, shown[: o.shown], o.seed)
        usual = usual_tokens(model, shown)
        found: dict[str, Any] = {
            "change_explained": {row.words: row.explained for row in maps},
            "composition": composition.compose(model, learned, shown, seed=o.seed),
        }
        if held.labels is not None:
            splits = labelled_splits(o.data, o.val, size=size)
            lessons = labelled(splits.train, o.images, size, o.seed)
            exam = labelled(splits.val, o.images, size, o.seed)
            found["averaged"] = averaged(model, lessons, exam, len(splits.classes), sorted(set(o.views)), o.seed)
    found |= {"data": held.name, "split": how, "images": o.images}
    settings = {
        **{name: getattr(o, name) for name in ("images", "views", "shown", "seed")},
        "data": source_identity(o.data),
        "val": source_identity(o.val) if o.val else "",
        "run": ritual.run_identity(o.run, o.out),
        "precision": precision,
    }
    path = ritual.place(o.run, "look", held.name, settings, out=o.out)
    content = ritual.write(path, found, settings)
    drawing.save(draw(maps, usual), path.with_suffix(".png"))
    if "averaged" in found:
        rows = found["averaged"]
        series = {name: [row[key] for row in rows] for key, name in (("knn", "kNN"), ("linear", "linear"))}
        title = f"Predictions averaged over random actions, {held.name}"
        bars = drawing.grouped_bars(title, "top-1", [row["what"] for row in rows], series)
        drawing.save(bars, path.with_name(f"{path.stem}-averaged.png"))
    _print(found, held.name)
    console.print(f"Written to {path}", soft_wrap=True)
    return {**content, "path": str(path)}


def _print(found: dict[str, Any], name: str) -> None:
    composed = found["composition"]
    rows = [[words, composed["error"][way], composed["mrr"][way]] for way, words in composition.WAYS.items()]
    console.print(console_.table(f"A change after a change, {name}", ["prediction", "error", "MRR"], rows))
    console.print(
        f"The linear way back explains {composed['way_back_r2']:.3f}; chance MRR {composed['mrr_chance']:.3f}."
    )
    if "averaged" in found:
        table = [[row["what"], row["knn"], row["linear"]] for row in found["averaged"]]
        console.print(console_.table(f"Averaged over actions, top-1 on {name}", ["features", "kNN", "linear"], table))


# ---- maps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapRow:
    """One change of one image, in pixels and in target space."""

    words: str
    source: Float[Tensor, "3 s s"]
    target: Float[Tensor, "3 s s"]
    before: Float[Tensor, "n d"]
    prediction: Float[Tensor, "n d"]
    truth: Float[Tensor, "n d"]
    grid: tuple[int, int]

    @property
    def moved(self) -> Float[Tensor, " n"]:
        """What the change moves, of every patch: mean squared difference of source and truth."""
        return (self.before - self.truth).square().mean(1)

    @property
    def missed(self) -> Float[Tensor, " n"]:
        """What the prediction misses, of every patch."""
        return (self.prediction - self.truth).square().mean(1)

    @property
    def explained(self) -> float:
        """1: the prediction is the truth; 0: as far from it as the source; below 0: farther."""
        return float(1 - self.missed.sum() / self.moved.sum().clamp_min(1e-12))


@torch.no_grad()
def rows_of(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int) -> list[MapRow]:
    """One entry of every image's bank as its change, then everything a source may carry undone once."""
    space, size = model.space, model.settings.data.image_size
    reference = reference_space(space, size)
    asked = []
    for index in range(len(images)):
        drawn = reference.sample_bank(seed, index, 1)
        asked.append((index, space.difference(space.neutral(1), drawn)[0]))
    undone = [p for p, t in enumerate(space.transformations) if not (t.graded and t.both) and t.probability > 0]
    for number, position in enumerate(undone):
        action = torch.zeros(space.dim)
        t = space.transformations[position]
        action[position] = (t.neutral - t.strongest) / (t.range or 1.0) if t.graded else 1.0
        asked.append((number % len(images), action))
    rows = []
    for index, action in asked:
        clean = images[index : index + 1].to(model.device).float() / 255
        source, target = space.apply(clean, carried(space, action)), space.apply(clean, space.reach(action[None]))
        before, truth = model.target(source).values[0].float(), model.target(target)
        prediction = model.predict(model.encode(source), action.to(model.device)).values[0].float()
        rows.append(
            MapRow(
                words=space.describe(action),
                source=source[0].cpu(),
                target=target[0].cpu(),
                before=before.cpu(),
                prediction=prediction.cpu(),
                truth=truth.values[0].float().cpu(),
                grid=truth.grid,
            )
        )
    return rows


@torch.no_grad()
def usual_tokens(model: ImageWorldModel, images: UInt8[Tensor, "k 3 s s"]) -> Float[Tensor, "n d"]:
    """The mean token of every position over the images, in target space."""
    total = sum(model.target(part).values.float().sum(0) for part in images.to(model.device).split(64))
    return (torch.as_tensor(total) / len(images)).cpu()


def principal(tokens: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d 3"]]:
    """Mean and the first three principal directions (fewer dimensions: padded with zeros)."""
    mean = tokens.mean(0)
    directions = torch.linalg.svd(tokens - mean, full_matrices=False).Vh[:3].T
    return mean, torch.nn.functional.pad(directions, (0, 3 - directions.shape[1]))


def draw(rows: Sequence[MapRow], usual: Float[Tensor, "n d"]) -> Figure:
    """Source and target, their tokens and the prediction's in one basis of colours, both differences on one scale.

    Colours show how a token differs from the `usual` one of its position: else they would show little but positions.
    """
    mean, directions = principal(torch.cat([part - usual for row in rows for part in (row.before, row.truth)]))
    projected = torch.cat([(row.truth - usual - mean) @ directions for row in rows])
    low, high = (projected.quantile(q, dim=0) for q in (0.02, 0.98))

    def colours(tokens: Float[Tensor, "n d"], grid: tuple[int, int]) -> Float[Tensor, "3 h w"]:
        shares = ((tokens - usual - mean) @ directions - low) / (high - low).clamp_min(1e-6)
        return shares.clamp(0, 1).T.unflatten(1, grid)

    def heat(values: Float[Tensor, " n"], top: float, grid: tuple[int, int]) -> Float[Tensor, "3 h w"]:
        shares = (values / max(top, 1e-12)).clamp(0, 1).reshape(grid).numpy()
        return torch.from_numpy(np.ascontiguousarray(colormaps["magma"](shares)[..., :3])).permute(2, 0, 1)

    heads = ("source", "target", "source tokens", "prediction", "truth", "change moves", "prediction misses")
    side, gap, margin, head, caption = 1.35, 0.1, 0.14, 0.36, 0.34
    width = 2 * margin + len(heads) * side + (len(heads) - 1) * gap
    figure = drawing.blank(width, head + len(rows) * (side + caption) + 0.04)
    for number, name in enumerate(heads):
        drawing.put_words(figure, name, margin + number * (side + gap), 0.1, 9.5, weight="bold")
    for number, row in enumerate(rows):
        top = head + number * (side + caption)
        largest = float(torch.cat([row.moved, row.missed]).max())
        panels = [row.source, row.target]
        panels += [colours(tokens, row.grid) for tokens in (row.before, row.prediction, row.truth)]
        panels += [heat(values, largest, row.grid) for values in (row.moved, row.missed)]
        for place, panel in enumerate(panels):
            drawing.put_picture(figure, panel, margin + place * (side + gap), top, side)
        below = top + side + 0.06
        drawing.put_words(figure, row.words, margin, below, 8.5)
        told = f"explains {row.explained:.0%} of the change"
        if row.explained < 0:
            told = f"misses {1 - row.explained:.1f} times what the change moves"
        drawing.put_words(figure, told, width - margin, below, 8.5, ha="right", color="#555555")
    return figure


# ---- averaged over actions -----------------------------------------------------------------------------------------


@torch.no_grad()
def views_of(
    model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], views: Sequence[int], seed: int, advance: Any
) -> dict[str, Float[Tensor, "n d"]]:
    """Pooled features of images: the encoder's, the prediction under the null action, and averages of predictions under
    `views` (ascending) random actions, each image with its own."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(images), 64):
        part = images[start : start + 64].to(model.device)
        tokens = model.encode(part)
        found.setdefault("encoder", []).append(tokens.values.float().mean(dim=1).cpu())
        found.setdefault("null action", []).append(
            pooled_prediction(model, tokens, space.null(len(part), model.device))
        )
        drawn = [reference.sample_bank(seed, start + index, views[-1]) for index in range(len(part))]
        actions = torch.stack([space.difference(space.neutral(views[-1]), parameters) for parameters in drawn])
        total = torch.zeros_like(found["null action"][-1])
        for view in range(views[-1]):
            total += pooled_prediction(model, tokens, actions[:, view].to(model.device))
            if view + 1 in views:
                found.setdefault(f"mean of {view + 1}", []).append(total / (view + 1))
            advance()
    return {name: torch.cat(parts) for name, parts in found.items()}


def averaged(
    model: ImageWorldModel,
    train: tuple[UInt8[Tensor, "m 3 s s"], Int64[Tensor, " m"]],
    test: tuple[UInt8[Tensor, "n 3 s s"], Int64[Tensor, " n"]],
    classes: int,
    views: Sequence[int],
    seed: int,
) -> list[dict[str, Any]]:
    """kNN and linear top-1 of the features of `views_of`, in order of the number of views."""
    with progress("views") as bar:
        batches = sum(-(-len(images) // 64) for images, _ in (train, test))
        task = bar.add_task("actions", total=batches * views[-1], note="")
        lessons, exam = (
            views_of(model, images, views, seed + number, lambda: bar.advance(task))
            for number, (images, _) in enumerate((train, test))
        )
    rows = []
    for name in lessons:
        row: dict[str, Any] = {"what": name}
        for kind in ("knn", "linear"):
            settings = ProbeSettings(kind=kind, seed=seed)
            with full_precision():
                found = evaluate(lessons[name], train[1], exam[name], classes, settings, config.Speed(device="cpu"))
            row[kind] = accuracy(found.logits, test[1])
        rows.append(row)
    return rows
