"""Two changes in a row, x -> y -> z: is p(f(x), a + b) what p(., b) makes of p(f(x), a)?

    error = |prediction - target(z)|^2 / |target(x) - target(z)|^2     0: exact, 1: as far off as the source

y and z are the clean image x jittered by parameters of their own, and an action is the difference of two images'
parameters, as in training; so actions add up exactly, and a perfect world makes no error.

Predictions live in target space, not in the encoder's, so p cannot be fed its own output. Two ways back are measured:
the bank image nearest to the first prediction is encoded, or the first prediction goes through a linear map from target
space to the encoder's, fitted to training images. Feeding the image truly changed by a shows what the second step makes
of the truth (a linear map may still rank better: it stays close to target space).
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm.actions.reference import reference_space
from iwm.evaluation.tasks.linear import Linear, choose_ridge
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime.algebra import chance, ranks, squared_distances

WAYS = {
    "null": "no change",
    "first": "the first change only",
    "sum": "both in one action",
    "reencoded": "second step from the nearest bank image",
    "translated": "second step through the linear map",
    "pixels": "second step from the true first image",
}
"""p(x, 0), p(x, a), p(x, a + b); then p(., b) of three stand-ins for y."""


@torch.no_grad()
def way_back(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], seed: int) -> Linear:
    """The linear map from target space to the encoder's, token by token, fitted to jittered images."""
    space = reference_space(model.space, model.settings.data.image_size)
    changed = space.apply(images.to(model.device).float() / 255, space.sample_bank(seed, 0, len(images)))
    targets, tokens = [], []
    for part in changed.split(64):
        targets.append(model.target(part).values.float().flatten(0, 1).cpu())
        tokens.append(model.encode(part).values.float().flatten(0, 1).cpu())
    image = torch.arange(len(images)).repeat_interleave(sum(map(len, tokens)) // len(images))
    return choose_ridge(torch.cat(targets), torch.cat(tokens), seed, image)


@torch.no_grad()
def compose(
    model: ImageWorldModel,
    train: UInt8[Tensor, "m 3 s s"],
    test: UInt8[Tensor, "n 3 s s"],
    bank: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Median error and mean reciprocal rank of every one of WAYS to two changes in a row, over the test images.

    The bank to rank in holds the truth and other jittered versions of the same image.
    """
    space, reference = model.space, reference_space(model.space, model.settings.data.image_size)
    back = way_back(model, train, seed)
    errors: dict[str, list[float]] = {way: [] for way in WAYS}
    reciprocal: dict[str, list[float]] = {way: [] for way in WAYS}
    unexplained = total = 0.0
    for index, image in enumerate(test):
        clean = image[None].to(model.device).float() / 255
        first, second = (reference.sample_bank(seed + way, index, bank) for way in (0, 1))
        once = reference.apply(clean.expand(bank, -1, -1, -1), first)
        twice = reference.apply(clean.expand(bank, -1, -1, -1), second)
        a = space.difference(space.neutral(1), first[:1]).to(model.device)
        b = space.difference(first[:1], second[:1]).to(model.device)
        targets = torch.cat([model.target(part).values.float() for part in twice.split(64)])
        banked = torch.cat([model.target(part).values.float() for part in once.split(64)])
        midway = model.encode(once[:1])
        moved = float((model.target(clean).values.float() - targets[:1]).square().sum())
        for way, values in _guesses(model, back, clean, once, banked, midway, a, b).items():
            errors[way].append(float((values - targets[:1]).square().sum()) / max(moved, 1e-12))
            distances = squared_distances(values, targets)
            reciprocal[way].append(1 / float(ranks(distances.expand(bank, -1))[0]))
        wanted = midway.values.float()
        unexplained += float((_through(back, banked[:1]) - wanted).square().sum())
        total += float((wanted - wanted.mean((0, 1))).square().sum())
    return {
        "bank": bank,
        "mrr_chance": chance(bank),
        "way_back_at_grid_end": back.at_grid_end,
        "way_back_r2": 1 - unexplained / max(total, 1e-12),
        "error": {way: sorted(values)[len(values) // 2] for way, values in errors.items()},
        "mrr": {way: sum(values) / len(values) for way, values in reciprocal.items()},
    }


def _guesses(
    model: ImageWorldModel,
    back: Linear,
    clean: Float[Tensor, "1 3 s s"],
    once: Float[Tensor, "b 3 s s"],
    banked: Float[Tensor, "b t d"],
    midway: Tokens,
    a: Float[Tensor, "1 k"],
    b: Float[Tensor, "1 k"],
) -> dict[str, Float[Tensor, "1 t d"]]:
    """Every one of WAYS from a clean image over the first of `once` to its second change, in target space.

    `banked` are the images `once` in target space, `midway` is the first of them encoded.
    """
    tokens = model.encode(clean)
    halfway = model.predict(tokens, a).values.float()
    nearest = int(squared_distances(halfway, banked)[0].argmin())
    guesses = {
        "null": model.predict(tokens, a * 0),
        "first": Tokens(halfway, tokens.grid),
        "sum": model.predict(tokens, a + b),
        "reencoded": model.predict(model.encode(once[nearest : nearest + 1]), b),
        "translated": model.predict(Tokens(_through(back, halfway), tokens.grid), b),
        "pixels": model.predict(midway, b),
    }
    return {way: guess.values.float() for way, guess in guesses.items()}


def _through(back: Linear, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t e"]:
    return back.logits(tokens.flatten(0, 1).cpu()).unflatten(0, tokens.shape[:2]).to(tokens.device)
