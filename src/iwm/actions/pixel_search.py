"""Which action turned one image into another? Search among pictures: apply the transformations and compare.

    a* = argmin_a distance(apply(x, a), y)

The transformations are known, so this needs no model: it is the strongest simple answer wherever source and target are
at hand as pixels. By the cross-entropy method (Rubinstein 1999): draw actions from a Gaussian, fit the Gaussian to the
best of them, again. What a source carries and is to be undone cannot be computed back from its pixels, so only what
both views can carry is sought.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iwm.actions.action_sets import origin_of
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.transformation import Transformation

PIXELS_AT_ONCE = 2**24
"""Pixels of candidates held at once."""

Features = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b f"]]
"""What of images is compared."""


@dataclass(frozen=True, kw_only=True)
class PixelSearch:
    """How an action is sought among pictures."""

    rounds: int = 8
    candidates: int = 192
    """Actions of a round, for every pair and every combination of flags."""
    best: int = 16
    """Of these the next round's Gaussian is fitted to so many."""
    spread: float = 0.5
    """Deviation of the first round's components, as a share of their range."""
    seed: int = 0


def pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """Every pixel as it is: for a source and a target whose pixels correspond."""
    return images.flatten(1)


def histograms(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """The pixels' values without their places, sorted: of every channel, of the differences between channels and of
    their sum (a sliced Wasserstein distance). For a source and a target of the same things in other places."""
    red, green, blue = images.flatten(2).unbind(1)
    values = torch.stack([red, green, blue, red - green, green - blue, blue - red, red + green + blue], dim=1)
    return values.sort(dim=2).values.flatten(1)


def search_pixels(
    space: ActionSpace,
    source: Float[Tensor, "n 3 h w"],
    target: Float[Tensor, "n 3 h w"],
    search: PixelSearch | None = None,
    features: Features = pixels,
) -> Float[Tensor, "n k"]:
    """The action of every pair, on the host, by the mean squared difference of the features of apply(source) and
    target; images float in [0, 1].

    Graded components lie in [-1, 1], those of a transformation of the user's within its range of an untouched source;
    flags are 0 or -1 (the target carries it), and what only a source carries is 0.
    """
    search = search or PixelSearch()
    at_once = max(1, PIXELS_AT_ONCE // (search.candidates * source.shape[-2] * source.shape[-1]))
    parts = zip(source.split(at_once), target.split(at_once), strict=True)
    return torch.cat([_search(space, *part, search, features) for part in parts])


def reach_with_flags(space: ActionSpace, actions: Float[Tensor, "b k"]) -> Parameters:
    """Parameters of the targets that the actions lead to from untouched images: graded ones and, of both views, the
    flags that they add (-1), at their strongest."""
    parameters = space.reach(actions)
    for position, t in enumerate(space.transformations):
        if not t.graded and t.both:
            on = actions[:, position].cpu() < 0
            parameters.applied[:, position] = on
            parameters.values[:, position] = torch.where(on, t.strongest, t.neutral)
    return parameters


def _search(
    space: ActionSpace,
    source: Float[Tensor, "n 3 h w"],
    target: Float[Tensor, "n 3 h w"],
    search: PixelSearch,
    features: Features,
) -> Float[Tensor, "n k"]:
    wanted = features(target)
    outcomes = [_descend(space, source, wanted, flags, search, features) for flags in _flag_choices(space)]
    distances = torch.stack([distance for _, distance in outcomes])
    actions = torch.stack([action for action, _ in outcomes])
    return actions[distances.argmin(dim=0), torch.arange(len(source))]


def _descend(
    space: ActionSpace,
    source: Float[Tensor, "n 3 h w"],
    wanted: Float[Tensor, "n f"],
    flags: Float[Tensor, " k"],
    search: PixelSearch,
    features: Features,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """The best action under these flags and its distance. All pairs share the random numbers of a round, so an answer
    depends on its own pair alone."""
    slides = torch.tensor([t.graded and t.both and t.range > 0 for t in space.transformations])
    least, most = torch.tensor([_ends(t) for t in space.transformations]).unbind(1)
    count, pairs = search.candidates, len(source)
    mean = flags.repeat(pairs, 1)
    spread = (slides * search.spread).repeat(pairs, 1)
    action, lowest = mean.clone(), torch.full((pairs,), torch.inf)
    generator = torch.Generator().manual_seed(search.seed)
    repeated = source.repeat_interleave(count, dim=0)
    for _ in range(search.rounds):
        noise = torch.randn(count, space.dim, generator=generator)
        noise[0] = 0  # the middle itself is a candidate
        tried = mean[:, None] + spread[:, None] * noise
        tried = torch.where(slides, tried.clamp(least, most), flags)
        changed = space.apply(repeated, reach_with_flags(space, tried.flatten(0, 1)))
        difference = features(changed).unflatten(0, (pairs, count)) - wanted[:, None]
        distance = difference.square().mean(dim=2).nan_to_num(nan=torch.inf).cpu()
        order = distance.argsort(dim=1)[:, : search.best]
        elite = tried.gather(1, order[:, :, None].expand(-1, -1, space.dim))
        mean, spread = elite.mean(dim=1), elite.std(dim=1, correction=0)
        first = distance.gather(1, order[:, :1])[:, 0]
        action = torch.where((first < lowest)[:, None], elite[:, 0], action)
        lowest = torch.minimum(first, lowest)
    return action, lowest


def _ends(t: Transformation) -> tuple[float, float]:
    """The least and the largest component that is tried; functions of the user's have been tried in their range only,
    those of the package take more."""
    if origin_of(t) or t.range <= 0:
        return -1.0, 1.0
    return (t.low - t.neutral) / t.range, (t.high - t.neutral) / t.range


def _flag_choices(space: ActionSpace) -> Float[Tensor, "c k"]:
    """Every combination of the flags that a target can carry, all else 0."""

    def values(t: Transformation) -> tuple[float, ...]:
        return (0.0, -1.0) if t.both and not t.graded and t.probability > 0 else (0.0,)

    return torch.tensor(list(itertools.product(*map(values, space.transformations))))
