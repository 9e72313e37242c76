"""How good is the world model? Mean reciprocal rank among jittered versions of the same image (paper section 4.1).

For each image: a bank of B jittered targets; the clean image's tokens through the predictor with the action of bank
entry j, all positions queried; the rank of entry j by squared distance in target space over all tokens.
MRR = mean 1/rank; a predictor that ignores the action has H_B / B (0.0239 for B = 256). Ties count half.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm import config
from iwm.actions.action_sets import BUILT_IN
from iwm.actions.action_space import ActionSpace
from iwm.model.world_model import ImageWorldModel, Tokens

HITS = (1, 5, 10)


def chance(bank: int) -> float:
    """Expected reciprocal rank of a random order of `bank` entries: the harmonic number over the count."""
    return float(sum(1 / rank for rank in range(1, bank + 1)) / bank)


def ranks(distances: Float[Tensor, "b b"]) -> Float[Tensor, " b"]:
    """Rank (from 1) of entry j in row j, ties counted half. Non-finite distances rank last."""
    own = distances.diagonal()[:, None]
    others = ~torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    nearer = (distances < own) | ~torch.isfinite(own)
    tied = (distances == own) & others
    return 1 + (nearer & others).sum(1) + 0.5 * tied.sum(1)


def squared_distances(a: Float[Tensor, "p n d"], b: Float[Tensor, "q n d"]) -> Float[Tensor, "p q"]:
    """|a_i - b_j|^2 over all tokens, centred first so that the subtraction does not cancel."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    centre = b.mean(0)
    a, b = a - centre, b - centre
    distances = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    # Entries that are equal up to rounding are ties, or a collapsed space would look like a random one.
    scale = distances.abs().amax().clamp_min(1e-12)
    return (distances / scale * 1e9).round() * (scale / 1e9)


def reference_space(space: ActionSpace, image_size: int) -> ActionSpace:
    """The bank's action space, common to every model of a built-in set: the `destructive` level's ranges. For a set of
    the user's, the model's own."""
    if space.set not in BUILT_IN:
        return space
    reference = ActionSpace.from_config(config.Actions(set=space.set), image_size)
    return reference if reference.names == space.names else space


def in_reference_units(space: ActionSpace, image_size: int) -> Float[Tensor, " k"]:
    """What an action is multiplied by to count in shares of the reference's ranges: errors of models that were trained
    on other ranges are then comparable. 1 for flags."""
    reference = reference_space(space, image_size).transformations
    pairs = zip(space.transformations, reference, strict=True)
    return torch.tensor([t.range / r.range if t.graded and r.range > 0 else 1.0 for t, r in pairs])


def bank_ranges(space: ActionSpace) -> list[tuple[str, float, float]]:
    """What a bank's entries are drawn from: name and range of every graded transformation of both views."""
    return [(t.name, t.low, t.high) for t in space.transformations if t.graded and t.both]


@dataclass(frozen=True)
class ImageRanks:
    """One image's bank: distances of every prediction (rows) to every entry (columns), and what the action changed."""

    distances: Float[Tensor, "b b"]
    null: Float[Tensor, " b"]
    actions: Float[Tensor, "b k"]
    moved: float
    moves: float


@torch.no_grad()
def rank_image(
    model: ImageWorldModel, image: UInt8[Tensor, "3 s s"], index: int, bank: int, seed: int, bank_space: ActionSpace
) -> ImageRanks:
    """Predict and rank one image's bank. Actions are encoded in the model's own ranges."""
    pixels = image[None].to(model.device).float() / 255
    parameters = bank_space.sample_bank(seed, index, bank)
    entries = bank_space.apply(pixels.expand(bank, -1, -1, -1), parameters)
    actions = model.space.difference(model.space.neutral(bank), parameters).to(model.device)
    clean = model.encode(pixels)
    truth, guess = [], []
    for entry, action in zip(entries.split(64), actions.split(64), strict=True):
        truth.append(model.target(entry).values.float())
        tokens = Tokens(clean.values.expand(len(entry), -1, -1), clean.grid)
        guess.append(model.predict(tokens, action).values.float())
    targets, predictions = torch.cat(truth), torch.cat(guess)
    still = model.predict(clean, model.space.null(1, model.device)[0]).values.float()
    return ImageRanks(
        squared_distances(predictions, targets),
        squared_distances(still, targets)[0],
        actions,
        float((predictions - still).square().sum()),
        float((targets - model.target(pixels).values.float()).square().sum()),
    )


@torch.no_grad()
def measure(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    bank: int = 256,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
    own_range: bool = False,
) -> dict[str, float]:
    """MRR, hits@k and all controls over the images' banks.

    mrr_shuffled: every prediction made with another entry's action; mrr_null: with the null action; both are at
    chance by construction of the metric unless targets tie. action_sensitivity = |p(a) - p(0)|^2 / |target(y_a) -
    target(y_0)|^2. inferred_action_error: mean absolute error, per component and in units of the reference's range, of
    the action of the bank entry nearest to the prediction. `advance` is called after every image. The bank's range is
    the `destructive` level's, common to all models, or the model's own.
    """
    bank_space = model.space if own_range else reference_space(model.space, model.settings.data.image_size)
    graded = [i for i, t in enumerate(model.space.transformations) if t.graded and t.both]
    units = in_reference_units(model.space, model.settings.data.image_size)[graded]
    all_ranks, shuffled, null, errors, zero = [], [], [], [], []
    moved = moves = 0.0
    for index, image in enumerate(images):
        result = rank_image(model, image, index, bank, seed, bank_space)
        all_ranks.append(ranks(result.distances))
        shuffled.append(1 / ranks(result.distances.roll(1, dims=0)))
        null.append(1 / ranks(result.null.expand(bank, bank)))
        nearest = result.actions[result.distances.argmin(1)]
        errors.append((nearest - result.actions)[:, graded].abs().mean(0))
        zero.append(result.actions[:, graded].abs().mean(0))
        moved, moves = moved + result.moved, moves + result.moves
        advance()
    rank = torch.cat(all_ranks)
    per_image = torch.stack([(1 / r).mean() for r in all_ranks])
    error, nothing = torch.stack(errors).mean(0).cpu() * units, torch.stack(zero).mean(0).cpu() * units
    return {
        "mrr": float((1 / rank).mean()),
        "mrr_standard_error": standard_error(per_image),
        "mrr_chance": chance(bank),
        "mrr_shuffled": float(torch.cat(shuffled).mean()),
        "mrr_null": float(torch.cat(null).mean()),
        **{f"hits_at_{k}": float((rank <= k).double().mean()) for k in HITS},
        "action_sensitivity": moved / max(moves, 1e-12),
        "inferred_action_error": float(error.mean()),
        "always_zero_action_error": float(nothing.mean()),
        **{f"inferred_{model.space.names[i]}_error": float(error[k]) for k, i in enumerate(graded)},
    }


def standard_error(per_image: Float[Tensor, " n"]) -> float:
    """Of the mean over images; of a single one it is not known (NaN)."""
    return float(per_image.std() / len(per_image) ** 0.5) if len(per_image) > 1 else math.nan


def held_out(count: int, available: int, seed: int) -> np.ndarray:
    """Which images of a split are asked: a seeded draw without repetition, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(available)[: min(count, available)])
