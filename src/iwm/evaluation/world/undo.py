"""Undoing corruptions in latent space: does a probe of clean images read a corrupted one, once the predictor has mapped
its tokens to those of the clean image?

    before  probe(pool target(x))        after  probe(pool p(f(x), a))        x = corrupted image

The probe is linear, fitted to clean training images in target space, and frozen. The action a is the true one, or one
found without knowing it: of the candidates (all that a source may carry, in all combinations, each with random jitter)
the one whose prediction is most plausible, by a Gaussian of the clean training images or by the probe's own certainty.
Beside it the usual answer, a probe trained on corrupted images. Corruptions are those of the reference (the level
`destructive`), whatever a model was trained on.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from tyro.conf import Positional

from iwm import config, run_folder
from iwm.actions.action_space import ActionSpace, Parameters, reference_space
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_all
from iwm.data.sources import labelled_splits, source_identity
from iwm.data.splits import draw_rows, tenth_of_each_class
from iwm.evaluation import ritual
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import Linear, fit_linear, fit_path, full_precision
from iwm.evaluation.tasks.probes import L2_GRID
from iwm.evaluation.uncertainty import accuracy_error, difference_error, standing
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress, table
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation, uniforms

COPIES = 3
"""Corrupted copies of a training image for the probe trained with augmentation, beside the clean one."""
NAMES = {
    "before": "as it is",
    "true_action": "undone, true action",
    "found_by_density": "undone, found by density",
    "found_by_probe": "undone, found by probe",
    "augmented_probe": "as it is, augmented probe",
}


@dataclass(frozen=True)
class Undo:
    run: Positional[str]
    """A run folder, exported weights, or hf-hub:user/name."""
    data: str
    """A labelled source."""
    val: str = ""
    """Source of the images that are corrupted; by default the source's own."""
    images: int = 500
    """Test images, each corrupted in every way."""
    train_images: int = 5000
    """Training images of the probes."""
    guesses: int = 4
    """Jitters tried with every combination of flags, the null one among them."""
    seed: int = 0
    out: str = ""
    """Where results go when RUN is not a local run folder."""
    speed: config.Speed = field(default_factory=config.Speed)


def undo(o: Undo) -> dict[str, Any]:
    """Corrupt, undo and classify; writes RUN/eval/undo-DATA.json and .png, prints one table, returns what was written.

    Raises UserError for a source without labels and a RUN without predictor.
    """
    if o.images < 1 or o.train_images < 20 or o.guesses < 1 or o.seed < 0:
        raise UserError("iwm undo needs --images 1, --train-images 20, --guesses 1 and --seed 0 or more.")
    model = run_folder.open_world(o.run, o.speed)
    size = model.settings.data.image_size
    splits = labelled_splits(o.data, o.val, size=size)
    precision = devices.precision_of(o.speed, model.device)
    with devices.threads(o.speed), devices.autocast(model.device, precision):
        train = labelled(splits.train, o.train_images, size, o.seed)
        test = labelled(splits.val, o.images, size, o.seed)
        found = measure(model, *train, *test, len(splits.classes), o.guesses, o.seed)
    found |= {"data": splits.val.name, "split": splits.sentence, "n_train": len(train[1]), "n_val": len(test[1])}
    settings = {
        **{name: getattr(o, name) for name in ("images", "train_images", "guesses", "seed")},
        "data": source_identity(o.data),
        "val": source_identity(o.val) if o.val else "",
        "run": ritual.run_identity(o.run, o.out),
        "precision": precision,
    }
    path = ritual.place(o.run, "undo", splits.val.name, settings, out=o.out)
    content = ritual.write(path, found, settings)
    corrupted: dict[str, dict[str, float]] = found["corruptions"]
    rows = [[name, *(row[key] for key in NAMES)] for name, row in corrupted.items()]
    console.print(table(f"Top-1 on {splits.val.name}, corrupted", ["corruption", *NAMES.values()], rows))
    clean, error = found["clean_top1"], found["standard_error"]
    through = found["clean_predicted_top1"]
    console.print(f"Clean images {clean:.4f}, through the predictor {through:.4f}; standard error about {error:.3f}.")
    worse = [name for name, row in corrupted.items() if _is_worse(row["true_action"], row["before"], len(test[1]))]
    if worse:
        console.print(f"[yellow]Undoing makes it worse, by more than two standard errors: {', '.join(worse)}.")
    console.print(f"Written to {path}", soft_wrap=True)
    series = {name: [row[key] for row in corrupted.values()] for key, name in NAMES.items()}
    figure = drawing.grouped_bars(
        f"Corruptions undone in latent space, {splits.val.name}", "top-1", list(corrupted), series, {"clean": clean}
    )
    drawing.save(figure, path.with_suffix(".png"))
    return {**content, "path": str(path)}


def _is_worse(after: float, before: float, count: int) -> bool:
    """By more than two standard errors of the difference, over `count` images."""
    return standing(after, before, difference_error(after, before, count)) == "BELOW"


def labelled(
    images: ImageSet, count: int, size: int, seed: int
) -> tuple[UInt8[Tensor, "n 3 s s"], Int64[Tensor, " n"]]:
    """A seeded draw of a set: decoded images and their labels; broken ones are left out."""
    assert images.labels is not None
    rows = draw_rows(count, len(images), seed)
    pixels, kept = load_all(Subset(images, rows), size)
    return pixels, torch.from_numpy(images.labels[rows[kept]]).long()


# ---- corruptions ---------------------------------------------------------------------------------------------------

Corrupt = Callable[[int, str], Parameters]
"""corrupt(count, purpose): what is done to each of `count` images; the purpose names the stream of random numbers."""


def undone(space: ActionSpace) -> list[int]:
    """Places of what a source may carry and a target does not."""
    return [p for p, t in enumerate(space.transformations) if not (t.graded and t.both) and t.probability > 0]


def corruptions(space: ActionSpace, alone: Sequence[int], seed: int) -> dict[str, Corrupt]:
    """Every transformation that stands `alone` at its strongest, jitter in the space's range and in twice that, and a
    mixture of the former jitter with each that stands alone as likely as not, at least one."""

    def jitter(strength: float) -> Corrupt:
        def corrupt(count: int, purpose: str) -> Parameters:
            rows = torch.arange(count).numpy()
            u = torch.from_numpy(uniforms(seed, f"undo jitter {purpose}", 0, rows, space.dim)).float()
            found = space.neutral(count)
            for p, t in enumerate(space.transformations):
                if t.graded and t.both:
                    value = t.neutral + strength * (t.low + u[:, p] * t.range - t.neutral)
                    found.values[:, p] = value.clamp_min(0) if t.neutral > 0 else value
                    found.applied[:, p] = True
            return found

        return corrupt

    def single(position: int) -> Corrupt:
        def corrupt(count: int, purpose: str) -> Parameters:
            found = space.neutral(count)
            found.values[:, position], found.applied[:, position] = space.transformations[position].strongest, True
            return found

        return corrupt

    def mixture(count: int, purpose: str) -> Parameters:
        found = jitter(1.0)(count, f"mixture {purpose}")
        rows = torch.arange(count).numpy()
        u = torch.from_numpy(uniforms(seed, f"undo mixture {purpose}", 0, rows, len(alone) + 1))
        for number, position in enumerate(alone):
            certain = (u[:, -1] * len(alone)).long() == number
            on = (u[:, number] < 0.5) | certain
            t = space.transformations[position]
            found.values[:, position] = torch.where(on, t.strongest, t.neutral)
            found.applied[:, position] = on
        return found

    named: dict[str, Corrupt] = {space.names[p]: single(p) for p in alone}
    named |= {"jitter": jitter(1.0), "jitter, twice the range": jitter(2.0)}
    return named | ({"mixture": mixture} if alone else {})


# ---- measured ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled_target(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """Target-space tokens averaged over the patches, on the host."""
    return torch.cat([model.target(part).values.float().mean(dim=1).cpu() for part in images.split(64)])


@torch.no_grad()
def pooled_prediction(model: ImageWorldModel, tokens: Tokens, actions: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
    """What the images become, averaged over the patches, on the host."""
    parts = zip(tokens.values.split(64), actions.split(64), strict=True)
    predictions = (model.predict(Tokens(values, tokens.grid), action).values for values, action in parts)
    return torch.cat([each.float().mean(dim=1).cpu() for each in predictions])


def candidates(space: ActionSpace, reference: ActionSpace, guesses: int, seed: int) -> Float[Tensor, "c k"]:
    """All that a source may carry, at its strongest, undone in all combinations, each with the null jitter and
    `guesses` - 1 random ones that undo jitter of the reference."""
    alone, members = undone(space), space.transformations
    full = [(t.neutral - t.strongest) / t.range if t.graded else 1.0 for t in (members[p] for p in alone)]
    choices = torch.zeros(2 ** len(alone), space.dim)
    choices[:, alone] = torch.tensor(list(itertools.product(*((0.0, each) for each in full)))).view(len(choices), -1)
    jitter = space.difference(reference.sample_bank(seed, 0, guesses), space.neutral(guesses))
    jitter[0] = 0
    return torch.cat([choice + jitter for choice in choices])


@dataclass(frozen=True)
class Density:
    """A Gaussian of clean images, its covariance shrunk by a tenth towards a round one."""

    mean: Float[Tensor, " d"]
    whitening: Float[Tensor, "d d"]

    @classmethod
    @full_precision()
    def fit(cls, values: Float[Tensor, "n d"]) -> "Density":
        centred = (values - values.mean(0)).double()
        covariance = 0.9 * centred.T @ centred / len(centred)
        covariance.diagonal().add_(0.1 * centred.square().mean() + 1e-9)
        return cls(values.mean(0), torch.linalg.cholesky(covariance.inverse()).float())

    @full_precision()
    def implausible(self, values: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Squared Mahalanobis distance to the mean."""
        return ((values - self.mean) @ self.whitening).square().sum(1)


def fit_probe(copies: Sequence[Float[Tensor, "n d"]], labels: Int64[Tensor, " n"], classes: int, seed: int) -> Linear:
    """A linear classifier of all copies of the images, its strength chosen on a seeded tenth of the images: none of the
    copies of an image that is asked has been learned from."""

    def of(rows: Int64[Tensor, " r"]) -> tuple[Float[Tensor, "m d"], Int64[Tensor, " m"]]:
        return torch.cat([values[rows] for values in copies]), labels[rows].repeat(len(copies))

    rest, tenth = tenth_of_each_class(labels, seed)
    strongest_first = sorted(L2_GRID, reverse=True)
    path = fit_path(*of(rest), classes, strongest_first)
    values, truth = of(tenth)
    scores = [accuracy(solution.logits(values), truth) for solution in path]
    return fit_linear(*of(torch.arange(len(labels))), classes, strongest_first[scores.index(max(scores))])


@torch.no_grad()
def measure(
    model: ImageWorldModel,
    train: UInt8[Tensor, "m 3 s s"],
    train_labels: Int64[Tensor, " m"],
    test: UInt8[Tensor, "n 3 s s"],
    test_labels: Int64[Tensor, " n"],
    classes: int,
    guesses: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Top-1 of every corruption before and after undoing, by NAMES; of clean images as they are and predicted."""
    space = model.space
    reference = reference_space(space, model.settings.data.image_size)
    kinds = corruptions(reference, undone(space), seed)
    clean, exam = train.float() / 255, test.float() / 255
    known = pooled_target(model, clean)
    copies = [known]
    # Shuffled: labels may come round as regularly as the kinds.
    rows = torch.from_numpy(permutation(seed, "undo copies", 0, len(clean)))
    for copy in range(COPIES):
        changed = clean.clone()
        for number, corrupt in enumerate(kinds.values()):
            mine = rows % len(kinds) == (number + copy) % len(kinds)
            if mine.any():
                changed[mine] = reference.apply(clean[mine], corrupt(int(mine.sum()), f"train {copy}"))
        copies.append(pooled_target(model, changed))
    probe = fit_probe([known], train_labels, classes, seed)
    sturdy = fit_probe(copies, train_labels, classes, seed)
    density = Density.fit(known)
    tried = candidates(space, reference, guesses, seed)

    def top1(values: Tensor, by: Linear = probe) -> float:
        return accuracy(by.logits(values), test_labels)

    outcome: dict[str, dict[str, float]] = {}
    nothing: dict[str, Corrupt] = {"nothing": lambda count, _: reference.neutral(count)}  # what searching blindly costs
    with progress("actions") as bar:
        task = bar.add_task("undo", total=(1 + len(kinds)) * len(tried), note="")
        for name, corrupt in (nothing | kinds).items():
            parameters = corrupt(len(exam), "test")
            spoilt = reference.apply(exam, parameters)
            tokens, before = _encoded(model, spoilt), pooled_target(model, spoilt)
            truth = space.difference(parameters, space.neutral(len(exam))).to(model.device)
            best = {key: (torch.full((len(exam),), torch.inf), before.clone()) for key in ("density", "probe")}
            for action in tried.to(model.device):
                guess = pooled_prediction(model, tokens, action.expand(len(exam), -1))
                entropy = torch.distributions.Categorical(logits=probe.logits(guess)).entropy()
                for key, energy in (("density", density.implausible(guess)), ("probe", entropy)):
                    lowest, kept = best[key]
                    better = energy < lowest
                    best[key] = (torch.where(better, energy, lowest), torch.where(better[:, None], guess, kept))
                bar.advance(task)
            outcome[name] = {
                "before": top1(before),
                "true_action": top1(pooled_prediction(model, tokens, truth)),
                "found_by_density": top1(best["density"][1]),
                "found_by_probe": top1(best["probe"][1]),
                "augmented_probe": top1(before, sturdy),
            }
    clean_top1 = outcome["nothing"]["before"]
    return {
        "clean_top1": clean_top1,
        "clean_predicted_top1": outcome["nothing"]["true_action"],
        "clean_augmented_probe_top1": outcome["nothing"]["augmented_probe"],
        "standard_error": accuracy_error(clean_top1, len(exam)),
        "majority_top1": float(test_labels.bincount().max() / len(test_labels)),
        "candidates": len(tried),
        "corruptions": outcome,
    }


@torch.no_grad()
def _encoded(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Tokens:
    parts = [model.encode(part) for part in images.split(64)]
    return Tokens(torch.cat([part.values for part in parts]), parts[0].grid)
