"""Looking into a world model: maps of its tokens, what a change moves, and what is left when changes are averaged out.

maps       tokens of source, prediction and truth, less the usual one of each position, coloured by principal components
change     |p - target(y)|^2 and |target(x) - target(y)|^2 per patch (paper appendix I)
averaged   z_K = mean over K random actions of pool p(f(x), a_k), probed against K (appendix G)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.reference import reference_space
from iwm.data.shares import load_draw
from iwm.data.sources import LabelledSplits, labelled_splits, open_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import full_precision
from iwm.evaluation.tasks.probe_kinds import probe_of
from iwm.evaluation.world import composition, strips
from iwm.evaluation.world.imagine import source_to_undo
from iwm.evaluation.world.strips import source_only
from iwm.evaluation.world.undo import load_labelled, pooled_prediction
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import open_world
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress, table
from iwm.verbs.look import Look
from iwm.verbs.probe import ProbeSettings


def look(o: Look) -> dict[str, Any]:
    """Look into a RUN; writes RUN/eval/look-DATA.json and .png (and a second picture where there are labels), prints
    and returns what was written. Raises UserError for a RUN without predictor, and for labels that no classifier can
    be trained on (`labelled_splits`)."""
    with ritual.evaluation("look", o) as work:
        model = open_world(o.run, work.session)
        size = model.settings.data.image_size
        train, held, how = open_splits(o.data, o.val, size=size)
        # Labels that will not do are an error before any work.
        labelled = train.labels is not None and held.labels is not None
        splits = labelled_splits(o.data, o.val, size=size) if labelled else None
        if held.labels is not None and not labelled:
            console.print(f"{train.name} has labels to measure on only, so averaging over actions is not probed.")
        with work.session.autocast():
            lessons, _ = load_draw(train, o.images, size, o.seed)
            exam, _ = load_draw(held, max(o.shown, o.images // 10), size, o.seed)
            maps = rows_of(model, exam[: o.shown], o.seed)
            usual = usual_tokens(model, exam)
            payload: dict[str, Any] = {
                "change_explained": {row.words: row.explained for row in maps},
                **({"imagined": {row.words: row.decibels for row in maps}} if model.decodes else {}),
                "composition": composition.compose(model, lessons, exam, seed=o.seed),
            }
            if splits is not None:
                payload["averaged"] = _averages_on(splits, o, model)
        payload |= {"data": held.name, "split": how, "images": len(lessons)}
        figures: dict[str, Callable[[], Figure]] = {"": lambda: draw(maps, usual)}
        if "averaged" in payload:
            figures["averaged"] = lambda: _draw_averages(payload)
        outcome = Outcome(
            data=held.name,
            payload=payload,
            settings=work.chosen(o, "images", "views", "shown", "seed", data=o.data, val=o.val),
            figures=figures,
        )
        content = work.conclude(outcome, lambda _: _show(payload))
        strips.say_how_to_see(model, o.run)
        return content


def _show(numbers: Mapping[str, Any]) -> None:
    name, composed = numbers["data"], numbers["composition"]
    rows = [[words, composed["error"][way], composed["mrr"][way]] for way, words in composition.WAYS.items()]
    console.print(table(f"A change after a change, {name}", ["prediction", "error", "MRR"], rows))
    console.print(
        f"The linear way back explains {composed['way_back_r2']:.3f}; chance MRR {composed['mrr_chance']:.3f}."
    )
    if "averaged" in numbers:
        rows = [[row["what"], row["knn"], row["linear"]] for row in numbers["averaged"]]
        console.print(table(f"Averaged over actions, top-1 on {name}", ["features", "kNN", "linear"], rows))


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
    imagined: Float[Tensor, "3 _h _w"] | None = None
    """The decoded prediction; None without a decoder."""
    decoded: Float[Tensor, "3 _h _w"] | None = None
    """The decoded truth."""

    @property
    def decibels(self) -> dict[str, float]:
        """PSNR to the target of the decoded prediction, the decoded truth and the source; empty without a decoder."""
        return strips.decibels(self.source, self.target, self.imagined, self.decoded)

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
    pairs = []
    for index in range(len(images)):
        change = reference.sample_bank(seed, index, 1)
        pairs.append((index, space.difference(space.neutral(1), change)[0]))
    for number, position in enumerate(source_only(space)):
        action = torch.zeros(space.dim)
        action[position] = space.transformations[position].undone
        pairs.append((number % len(images), action))
    rows = []
    for index, action in pairs:
        clean = images[index : index + 1].to(model.device).float() / 255
        source, target = (
            space.apply(clean, source_to_undo(space, action)),
            space.apply(clean, space.reach(action[None])),
        )
        before, truth = model.target(source).values[0].float(), model.target(target)
        prediction = model.predict(model.encode(source), action.to(model.device))
        imagined, decoded = (model.decode(tokens)[0].cpu() if model.decodes else None for tokens in (prediction, truth))
        rows.append(
            MapRow(
                words=space.describe(action),
                source=source[0].cpu(),
                target=target[0].cpu(),
                before=before.cpu(),
                prediction=prediction.values[0].float().cpu(),
                truth=truth.values[0].float().cpu(),
                grid=truth.grid,
                imagined=imagined,
                decoded=decoded,
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

    heads = ["source", "target", "source tokens", "prediction", "truth", "change moves", "prediction misses"]
    shows = bool(rows) and bool(rows[0].decibels)
    if shows:
        heads[1:1] = ["imagined", "target, decoded"]
    side, gap, margin, head, caption = 1.35, 0.1, 0.14, 0.36, 0.52 if shows else 0.34
    width = 2 * margin + len(heads) * side + (len(heads) - 1) * gap
    figure = drawing.blank(width, head + len(rows) * (side + caption) + 0.04)
    for number, name in enumerate(heads):
        drawing.put_words(figure, name, margin + number * (side + gap), 0.1, 9.5, weight="bold")
    for number, row in enumerate(rows):
        top = head + number * (side + caption)
        largest = float(torch.cat([row.moved, row.missed]).max())
        panels = [one for one in (row.source, row.imagined, row.decoded, row.target) if one is not None]
        panels += [colours(tokens, row.grid) for tokens in (row.before, row.prediction, row.truth)]
        panels += [heat(values, largest, row.grid) for values in (row.moved, row.missed)]
        for place, panel in enumerate(panels):
            drawing.put_picture(figure, panel, margin + place * (side + gap), top, side)
        below = top + side + 0.06
        drawing.put_words(figure, row.words, margin, below, 8.5)
        for place, key in enumerate(("psnr_prediction", "psnr_truth"), start=1) if shows else ():
            words, left = f"{row.decibels[key]:.1f} dB", margin + place * (side + gap)
            drawing.put_words(figure, words, left, below + 0.18, 8.5, color="#555555")
        verdict = f"explains {row.explained:.0%} of the change"
        if row.explained < 0:
            verdict = f"misses {1 - row.explained:.1f} times what the change moves"
        drawing.put_words(figure, verdict, width - margin, below, 8.5, ha="right", color="#555555")
    return figure


# ---- averaged over actions -----------------------------------------------------------------------------------------


def _averages_on(splits: LabelledSplits, o: Look, model: ImageWorldModel) -> list[dict[str, Any]]:
    size = model.settings.data.image_size
    lessons, exam = (load_labelled(images, o.images, size, o.seed) for images in (splits.train, splits.val))
    return probe_averages(model, lessons, exam, len(splits.classes), sorted(set(o.views)), o.seed)


def _draw_averages(numbers: Mapping[str, Any]) -> Figure:
    rows = numbers["averaged"]
    series = {name: [row[key] for row in rows] for key, name in (("knn", "kNN"), ("linear", "linear"))}
    title = f"Predictions averaged over random actions, {numbers['data']}"
    return drawing.grouped_bars(title, "top-1", [row["what"] for row in rows], series)


@torch.no_grad()
def views_of(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    views: Sequence[int],
    seed: int,
    advance: Callable[[], object],
) -> dict[str, Float[Tensor, "n d"]]:
    """Pooled features of images: the encoder's, the prediction under the null action, and averages of predictions under
    `views` (ascending) random actions, each image with its own."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    features: dict[str, list[Tensor]] = {}
    for start in range(0, len(images), 64):
        part = images[start : start + 64].to(model.device)
        tokens = model.encode(part)
        features.setdefault("encoder", []).append(tokens.values.float().mean(dim=1).cpu())
        features.setdefault("null action", []).append(
            pooled_prediction(model, tokens, space.null(len(part), model.device))
        )
        banks = [reference.sample_bank(seed, start + index, views[-1]) for index in range(len(part))]
        actions = torch.stack([space.difference(space.neutral(views[-1]), parameters) for parameters in banks])
        total = torch.zeros_like(features["null action"][-1])
        for view in range(views[-1]):
            total += pooled_prediction(model, tokens, actions[:, view].to(model.device))
            if view + 1 in views:
                features.setdefault(f"mean of {view + 1}", []).append(total / (view + 1))
            advance()
    return {name: torch.cat(parts) for name, parts in features.items()}


def probe_averages(
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
            way = probe_of(ProbeSettings(kind=kind, seed=seed), devices.CPU)
            with full_precision():
                answer = way.evaluate(lessons[name], train[1], exam[name], classes)
            row[kind] = accuracy(answer.logits, test[1])
        rows.append(row)
    return rows
