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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.action_sets import origin_of
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.reference import reference_space
from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_draw
from iwm.data.sources import labelled_splits
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import Linear, choose_l2, fit_chosen, full_precision
from iwm.evaluation.uncertainty import accuracy_error, difference_error, majority_top1, standing
from iwm.evaluation.world.strips import carrying, source_only
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.run_folder import open_world
from iwm.runtime import sharing
from iwm.runtime.console import console, progress, table
from iwm.runtime.drawing import grouped_bars
from iwm.runtime.randomness import permutation, uniforms
from iwm.verbs.probe import L2
from iwm.verbs.undo import Undo

BATCH = 64
"""Images through the model at once."""
COPIES = 3
"""Corrupted copies of a training image for the probe trained with augmentation, beside the clean one."""
NAMES = {
    "before": "as it is",
    "true_action": "undone, true action",
    "found_by_density": "undone, found by density",
    "found_by_probe": "undone, found by probe",
    "augmented_probe": "as it is, augmented probe",
}


def undo(o: Undo) -> dict[str, Any]:
    """Corrupt, undo and classify; writes RUN/eval/undo-DATA.json and .png, prints one table, returns what was written.

    Raises UserError for a source without labels and a RUN without predictor.
    """
    with ritual.evaluation("undo", o) as work:
        model = open_world(o.run, work.session)
        size = model.settings.data.image_size
        splits = labelled_splits(o.data, o.val, size=size)
        with work.session.autocast():
            train = load_labelled(splits.train, o.train_images, size, o.seed)
            test = load_labelled(splits.val, o.images, size, o.seed)
            payload = measure(model, *train, *test, len(splits.classes), o.guesses, o.seed)
        payload |= {"data": splits.val.name, "split": splits.sentence}
        payload |= {"n_train": len(train[1]), "n_val": len(test[1])}
        outcome = Outcome(
            data=splits.val.name,
            payload=payload,
            settings=work.chosen(o, "images", "train_images", "guesses", "seed", data=o.data, val=o.val),
            figures={"": lambda: _draw(payload)},
        )
        return work.conclude(outcome, lambda _: _show(payload))


def _show(numbers: Mapping[str, Any]) -> None:
    corruptions = numbers["corruptions"]
    rows = [[name, *(row[key] for key in NAMES)] for name, row in corruptions.items()]
    console.print(table(f"Top-1 on {numbers['data']}, corrupted", ["corruption", *NAMES.values()], rows))
    console.print(
        f"Clean images {numbers['clean_top1']:.4f}, through the predictor {numbers['clean_predicted_top1']:.4f}; "
        f"standard error about {numbers['standard_error']:.3f}."
    )
    count = numbers["n_val"]
    worse = [name for name, row in corruptions.items() if _is_worse(row["true_action"], row["before"], count)]
    if worse:
        console.print(f"[yellow]Undoing makes it worse, by more than two standard errors: {', '.join(worse)}.")


def _draw(numbers: Mapping[str, Any]) -> Figure:
    corruptions = numbers["corruptions"]
    series = {name: [row[key] for row in corruptions.values()] for key, name in NAMES.items()}
    title = f"Corruptions undone in latent space, {numbers['data']}"
    return grouped_bars(title, "top-1", list(corruptions), series, {"clean": numbers["clean_top1"]})


def _is_worse(after: float, before: float, count: int) -> bool:
    """By more than two standard errors of the difference, over `count` images."""
    return standing(after, before, difference_error(after, before, count)) == "BELOW"


def load_labelled(
    images: ImageSet, count: int, size: int, seed: int
) -> tuple[UInt8[Tensor, "n 3 s s"], Int64[Tensor, " n"]]:
    """A seeded draw of a set: decoded images and their labels; broken ones are left out."""
    assert images.labels is not None
    pixels, rows = load_draw(images, count, size, seed)
    return pixels, torch.from_numpy(images.labels[rows]).long()


# ---- corruptions ---------------------------------------------------------------------------------------------------

NOTHING = "nothing"
"""The row of images as they are: what searching blindly costs."""
Corrupt = Callable[[int, str], Parameters]
"""corrupt(count, purpose): what is done to each of `count` images; the purpose names the stream of random numbers."""


def corruptions(space: ActionSpace, alone: Sequence[int], seed: int) -> dict[str, Corrupt]:
    """Every transformation that stands `alone` at its strongest, jitter in the space's range and in twice that, and a
    mixture of the former jitter with each that stands alone as likely as not, at least one."""

    def jitter(strength: float, count: int, purpose: str) -> Parameters:
        rows = torch.arange(count).numpy()
        u = torch.from_numpy(uniforms(seed, f"undo jitter {purpose}", 0, rows, space.dim)).float()
        parameters = space.neutral(count)
        for p, t in enumerate(space.transformations):
            if t.graded and t.both:
                value = t.neutral + strength * (t.low + u[:, p] * t.range - t.neutral)
                least, most = (t.floor, None) if origin_of(t) else (t.low, t.high)  # the user's are tried in range only
                parameters.values[:, p] = value.clamp(least, most)
                parameters.applied[:, p] = True
        return parameters

    def single(position: int, count: int, purpose: str) -> Parameters:
        return carrying(space.neutral(count), position, space)

    def mixture(count: int, purpose: str) -> Parameters:
        parameters = jitter(1.0, count, f"mixture {purpose}")
        rows = torch.arange(count).numpy()
        u = torch.from_numpy(uniforms(seed, f"undo mixture {purpose}", 0, rows, len(alone) + 1))
        for number, position in enumerate(alone):
            certain = (u[:, -1] * len(alone)).long() == number
            on = (u[:, number] < 0.5) | certain
            t = space.transformations[position]
            parameters.values[:, position] = torch.where(on, t.strongest, t.neutral)
            parameters.applied[:, position] = on
        return parameters

    jittered: dict[str, Corrupt] = {"jitter": partial(jitter, 1.0), "jitter, twice the range": partial(jitter, 2.0)}
    mixes = jittered | ({"mixture": mixture} if alone else {})
    taken = {NOTHING, *mixes}
    names = {p: space.names[p] + " alone" * (space.names[p] in taken) for p in alone}
    named: dict[str, Corrupt] = {name: partial(single, p) for p, name in names.items()}
    return named | mixes


# ---- measured ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pooled_target(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """Target-space tokens averaged over the patches, on the host; every rank does its share of the images."""

    def pooled(images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return torch.cat([model.target(part).values.float().mean(dim=1).cpu() for part in images.split(BATCH)])

    return sharing.by_rows(pooled, images)


@torch.no_grad()
def pooled_prediction(model: ImageWorldModel, tokens: Tokens, actions: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
    """What the images become, averaged over the patches, on the host."""
    parts = zip(tokens.values.split(BATCH), actions.split(BATCH), strict=True)
    predictions = (model.predict(Tokens(values, tokens.grid), action).values for values, action in parts)
    return torch.cat([each.float().mean(dim=1).cpu() for each in predictions])


def candidates(space: ActionSpace, reference: ActionSpace, guesses: int, seed: int) -> Float[Tensor, "c k"]:
    """All that a source may carry, at its strongest, undone in all combinations, each with the null jitter and
    `guesses` - 1 random ones that undo jitter of the reference."""
    alone = source_only(space)
    full = [space.transformations[position].undone for position in alone]
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
    """A linear classifier of all copies of the images, its strength chosen as the linear probe's: none of the copies of
    an image that is asked has been learned from."""
    values, truth = torch.cat(list(copies)), labels.repeat(len(copies))
    tried = choose_l2(values, truth, classes, L2, seed, beyond=True, copies=len(copies))
    return fit_chosen(values, truth, classes, tried)


@dataclass(frozen=True)
class Readers:
    """Who reads an image's pooled tokens: a probe of clean images, one of corrupted ones, the density of clean ones."""

    probe: Linear
    augmented: Linear
    density: Density

    @classmethod
    def fit(
        cls, copies: Sequence[Float[Tensor, "n d"]], labels: Int64[Tensor, " n"], classes: int, seed: int
    ) -> "Readers":
        """Learn from training images, the clean copy first."""
        probe = fit_probe(copies[:1], labels, classes, seed)
        return cls(probe, fit_probe(copies, labels, classes, seed), Density.fit(copies[0]))


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
    kinds = corruptions(reference, source_only(space), seed)
    exam = test.float() / 255
    readers = Readers.fit(_corrupted_copies(model, train, kinds, seed), train_labels, classes, seed)
    tried = candidates(space, reference, guesses, seed)
    outcome: dict[str, dict[str, float]] = {}
    nothing: dict[str, Corrupt] = {NOTHING: lambda count, _: reference.neutral(count)}
    with progress("actions") as bar:
        task = bar.add_task("undo", total=(1 + len(kinds)) * len(tried), note="")
        for name, corrupt in (nothing | kinds).items():
            parameters = corrupt(len(exam), "test")
            corrupted = reference.apply(exam, parameters)
            truth = space.difference(parameters, space.neutral(len(exam)))

            def every_way(images: Tensor, truth: Tensor) -> dict[str, Tensor]:
                return _undo_every_way(model, images, truth, tried, readers, lambda: bar.advance(task))

            features = sharing.each_by_rows(every_way, corrupted, truth)
            logits = {way: readers.probe.logits(values) for way, values in features.items()}
            logits["augmented_probe"] = readers.augmented.logits(features["before"])
            outcome[name] = {way: accuracy(each, test_labels) for way, each in logits.items()}
    clean_top1 = outcome[NOTHING]["before"]
    return {
        "clean_top1": clean_top1,
        "clean_predicted_top1": outcome[NOTHING]["true_action"],
        "clean_augmented_probe_top1": outcome[NOTHING]["augmented_probe"],
        "standard_error": accuracy_error(clean_top1, len(exam)),
        "majority_top1": majority_top1(train_labels.numpy(), test_labels.numpy()),
        "candidates": len(tried),
        "corruptions": outcome,
        "probe_at_grid_end": readers.probe.at_grid_end,
        "augmented_probe_at_grid_end": readers.augmented.at_grid_end,
    }


def _corrupted_copies(
    model: ImageWorldModel, images: UInt8[Tensor, "m 3 s s"], kinds: Mapping[str, Corrupt], seed: int
) -> list[Float[Tensor, "m d"]]:
    """Pooled tokens of the images as they are, and of COPIES corrupted ones, every kind as often in each copy. Every
    rank does its share of the images, and holds a batch of them as numbers at a time."""
    reference = reference_space(model.space, model.settings.data.image_size)
    copies = [_parameters_of_copy(reference, kinds, copy, len(images), seed) for copy in range(COPIES)]

    def pooled(rows: Int64[Tensor, " n"]) -> dict[str, Float[Tensor, "n d"]]:
        parts: dict[str, list[Tensor]] = {}
        for batch in rows.split(BATCH):
            clean = images[batch].float() / 255
            pictures = [clean, *(reference.apply(clean, parameters[batch]) for parameters in copies)]
            for number, each in enumerate(pictures):
                parts.setdefault(f"copy {number}", []).append(pooled_target(model, each))
        return {name: torch.cat(values) for name, values in parts.items()}

    return list(sharing.each_by_rows(pooled, torch.arange(len(images))).values())


def _parameters_of_copy(
    reference: ActionSpace, kinds: Mapping[str, Corrupt], copy: int, count: int, seed: int
) -> Parameters:
    """How each of `count` training images is corrupted in a copy."""
    # Shuffled: labels may come round as regularly as the kinds.
    rows = torch.from_numpy(permutation(seed, "undo copies", 0, count))
    parameters = reference.neutral(count)
    for number, corrupt in enumerate(kinds.values()):
        mine = rows % len(kinds) == (number + copy) % len(kinds)
        if mine.any():
            part = corrupt(int(mine.sum()), f"train {copy}")
            parameters.values[mine], parameters.applied[mine] = part.values, part.applied
    return parameters


def _undo_every_way(
    model: ImageWorldModel,
    images: Float[Tensor, "n 3 s s"],
    truth: Float[Tensor, "n k"],
    tried: Float[Tensor, "c k"],
    readers: Readers,
    advance: Callable[[], None],
) -> dict[str, Float[Tensor, "n d"]]:
    """Pooled tokens as they are, undone by the true action, and by the most plausible of the `tried` ones."""
    count, tokens, before = len(images), _encoded(model, images), pooled_target(model, images)
    best = {key: (torch.full((count,), torch.inf), before.clone()) for key in ("density", "probe")}
    for action in tried.to(model.device):
        guess = pooled_prediction(model, tokens, action.expand(count, -1))
        entropy = torch.distributions.Categorical(logits=readers.probe.logits(guess)).entropy()
        for key, energy in (("density", readers.density.implausible(guess)), ("probe", entropy)):
            lowest, kept = best[key]
            better = energy < lowest
            best[key] = (torch.where(better, energy, lowest), torch.where(better[:, None], guess, kept))
        advance()
    return {
        "before": before,
        "true_action": pooled_prediction(model, tokens, truth.to(model.device)),
        "found_by_density": best["density"][1],
        "found_by_probe": best["probe"][1],
    }


@torch.no_grad()
def _encoded(model: ImageWorldModel, images: Float[Tensor, "n 3 s s"]) -> Tokens:
    parts = [model.encode(part) for part in images.split(BATCH)]
    return Tokens(torch.cat([part.values for part in parts]), parts[0].grid)
