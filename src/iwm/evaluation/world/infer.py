"""Which change turned one image into another, found by search through the predictor, beside what needs none.

    error = mean |a_found - a_true|  per component, in shares of the reference's range (the level `destructive`)

Pairs are (clean image, one entry of its bank), as in `iwm world`. Baselines: the null action; ridge regression on the
channel statistics of both images' pixels; ridge regression on the pooled features of both, the encoder's and those of
target space, which the search looks at too. Both regressions learn from training images, everything is measured on
held-out ones.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from tyro.conf import Positional

from iwm import config, run_folder
from iwm.actions.action_space import ActionSpace, Parameters, in_reference_units, reference_space
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_all, load_one
from iwm.data.sources import open_splits, source_identity
from iwm.data.splits import draw_rows
from iwm.evaluation import ritual
from iwm.evaluation.tasks.linear import choose_ridge
from iwm.evaluation.uncertainty import standard_error
from iwm.model.action_search import Search
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress, show, table
from iwm.runtime.errors import UserError

BATCH = 16
"""Pairs searched at once."""


@dataclass(frozen=True)
class Infer:
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    source: Positional[str] = ""
    """An image file."""
    target: Positional[str] = ""
    """An image file: the source after the change that is sought."""
    data: str = ""
    """Instead of two images: a source of images to measure the error on, whose held-out ones are changed at random."""
    val: str = ""
    """Source of the held-out images; by default the data's own."""
    images: int = 64
    """Held-out images that are changed."""
    train_images: int = 2000
    """Training images the baselines learn from."""
    undo: bool = True
    """Two images: also search what may have to be undone; else only what both views can carry."""
    seed: int = 0
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def infer(o: Infer) -> dict[str, Any]:
    """Find the action between two images, or measure over a source how well that goes; write, print and return it.

    Raises UserError when neither or both are given, for images that are none, and for a RUN without predictor.
    """
    if bool(o.data) == bool(o.source) or bool(o.source) != bool(o.target):
        raise UserError("Give two images, iwm infer RUN SOURCE TARGET, or --data S to measure over a source.")
    if o.images < 1 or o.train_images < 20 or o.seed < 0:
        raise UserError(
            f"--images {o.images} --train-images {o.train_images} --seed {o.seed}: give 1, 20 and 0 or more."
        )
    model = run_folder.open_world(o.run, o.speed)
    with devices.threads(o.speed), devices.autocast(model.device, devices.precision_of(o.speed, model.device)):
        return _measured(o, model) if o.data else _pair(o, model)


def _settings(o: Infer, model: ImageWorldModel, **more: Any) -> dict[str, Any]:
    precision = devices.precision_of(o.speed, model.device)
    return {"seed": o.seed, "run": ritual.run_identity(o.run, o.out), "precision": precision, **more}


def _pair(o: Infer, model: ImageWorldModel) -> dict[str, Any]:
    size, space = model.settings.data.image_size, model.space
    source, target = load_one(o.source, size), load_one(o.target, size)
    action = model.infer_action(source, target, Search(undo=o.undo))
    raw = {
        t.name: component * (t.range if t.graded else 1)
        for t, component in zip(space.transformations, action[0].tolist(), strict=True)
    }
    found: dict[str, Any] = {
        "action": raw,
        "words": space.describe(action[0].cpu()),
        "residual": float(residuals(model, source, target, action)),
        "null_residual": float(residuals(model, source, target, space.null(1))),
    }
    names = [run_folder.plain_name(Path(path).stem) for path in (o.source, o.target)]
    found["data"] = f"{names[0]} to {names[1]}"
    images = {"source": source_identity(o.source), "target": source_identity(o.target), "undo": o.undo}
    settings = _settings(o, model, **images)
    path = ritual.place(o.run, "infer", names[1], settings, variant=names[0], out=o.out)
    content = ritual.write(path, found, settings)
    shown = raw | {k: found[k] for k in ("words", "residual", "null_residual")}
    show(f"The change from {names[0]} to {names[1]}", shown, path)
    if found["residual"] > 0.9 * found["null_residual"]:
        console.print("[yellow]No action explains the target much better than leaving the source as it is.")
    return {**content, "path": str(path)}


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


# ---- measured ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Images, each with one changed version, and the change."""

    source: Float[Tensor, "n 3 s s"]
    target: Float[Tensor, "n 3 s s"]
    action: Float[Tensor, "n k"]


def changed(
    space: ActionSpace, images: UInt8[Tensor, "n 3 s s"], size: int, seed: int, indices: Int64[Tensor, " n"]
) -> Pairs:
    """Every image and one entry of its bank, drawn by its index."""
    reference = reference_space(space, size)
    drawn = [reference.sample_bank(seed, int(index), 1) for index in indices]
    parameters = Parameters(torch.cat([p.values for p in drawn]), torch.cat([p.applied for p in drawn]))
    clean = images.float() / 255
    return Pairs(clean, reference.apply(clean, parameters), space.difference(space.neutral(len(images)), parameters))


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


def both(source: Float[Tensor, "n f"], target: Float[Tensor, "n f"]) -> Float[Tensor, "n g"]:
    """What a regression sees of a pair: the source's features and how they differ in the target."""
    return torch.cat([source, target - source], dim=1)


@torch.no_grad()
def pooled(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """The encoder's tokens and those of target space, averaged."""
    parts = [(model.encode(part).values, model.target(part).values) for part in images.split(64)]
    return torch.cat([torch.cat([tokens.float().mean(dim=1) for tokens in part], dim=1).cpu() for part in parts])


def measure(
    model: ImageWorldModel, train: UInt8[Tensor, "m 3 s s"], test: UInt8[Tensor, "n 3 s s"], seed: int = 0
) -> dict[str, Any]:
    """Mean absolute error of the action found on the test images, of each component and over the graded ones, in shares
    of the reference's ranges; the same of the baselines learned on the training images."""
    space, size = model.space, model.settings.data.image_size
    graded = [i for i, t in enumerate(space.transformations) if t.graded and t.both and t.range > 0]
    lessons = changed(space, train, size, seed, torch.arange(len(train)))
    exam = changed(space, test, size, seed + 1, torch.arange(len(test)))
    found = []
    with progress("pairs") as bar:
        task = bar.add_task("search", total=len(test), note="")
        for start in range(0, len(test), BATCH):
            rows = slice(start, start + BATCH)
            found.append(model.infer_action(exam.source[rows], exam.target[rows], Search(undo=False)).cpu())
            bar.advance(task, len(found[-1]))
    answers = {"search": torch.cat(found)[:, graded], "always_zero": torch.zeros(len(test), len(graded))}
    wanted = lessons.action[:, graded]
    for name, features in (
        ("pixel_statistics", lambda images: torch.cat([channel_statistics(part) for part in images.split(256)])),
        ("encoder_features", lambda images: pooled(model, images)),
    ):
        fitted = choose_ridge(both(features(lessons.source), features(lessons.target)), wanted, seed)
        answers[name] = fitted.logits(both(features(exam.source), features(exam.target)))
    truth, units = exam.action[:, graded], in_reference_units(space, size)[graded]
    outcome: dict[str, Any] = {"inferred_action_error": float((units * (answers["search"] - truth)).abs().mean())}
    for name, answer in answers.items():
        error = (units * (answer - truth)).abs()
        outcome[name] = {
            "error": float(error.mean()),
            "standard_error": standard_error(error.mean(1)),
            "components": {space.names[i]: float(error[:, k].mean()) for k, i in enumerate(graded)},
        }
    full = torch.zeros(len(test), space.dim)
    full[:, graded] = answers["search"]
    for key, actions in (("residual", full), ("null_residual", full * 0), ("true_residual", exam.action)):
        parts = zip(exam.source.split(64), exam.target.split(64), actions.split(64), strict=True)
        outcome[key] = float(torch.cat([residuals(model, *part) for part in parts]).mean())
    return outcome


def _drawn(images: ImageSet, count: int, size: int, seed: int) -> UInt8[Tensor, "n 3 s s"]:
    return load_all(Subset(images, draw_rows(count, len(images), seed)), size)[0]


def _measured(o: Infer, model: ImageWorldModel) -> dict[str, Any]:
    size = model.settings.data.image_size
    train, held, how = open_splits(o.data, o.val, size=size)
    lessons, exam = _drawn(train, o.train_images, size, o.seed), _drawn(held, o.images, size, o.seed)
    found = measure(model, lessons, exam, o.seed)
    found |= {"data": held.name, "split": how, "images": len(exam), "train_images": len(lessons)}
    sources = {"data": source_identity(o.data), "val": source_identity(o.val) if o.val else ""}
    sizes = {"images": o.images, "train_images": o.train_images}
    settings = _settings(o, model, **sources, **sizes)
    path = ritual.place(o.run, "infer", held.name, settings, out=o.out)
    content = ritual.write(path, found, settings)
    names = {
        "search": "search through the predictor",
        "always_zero": "always zero",
        "pixel_statistics": "ridge, pixel statistics",
        "encoder_features": "ridge, pooled features",
    }
    components = list(found["search"]["components"])
    rows = [[n, found[k]["error"], *found[k]["components"].values()] for k, n in names.items()]
    console.print(table(f"Error of the inferred action on {held.name}", ["", "mean", *components], rows))
    console.print(f"Written to {path}", soft_wrap=True)
    series = {n: list(found[k]["components"].values()) for k, n in names.items()}
    title = f"Inferred actions on {held.name}: mean absolute error"
    drawing.save(drawing.grouped_bars(title, "error, share of the range", components, series), path.with_suffix(".png"))
    return {**content, "path": str(path)}
