"""Which action turned one image into another? Search through the predictor, many pairs at once.

    a* = argmin_a |(p(f(x), a) - p(f(x), 0)) - (target(y) - target(x))|^2

What the null action already predicts wrong is the same for every action, so changes are compared, not images. It
descends by Adam from the null action (docs/lab-notes.md says what else was measured). A flag is no number to slide
along: every combination of flags is descended from, the best is kept.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.transformation import Transformation

Energy = Callable[[Int64[Tensor, " c"], Float[Tensor, "c k"]], Float[Tensor, " c"]]
"""energy(rows, actions): how badly each action fits the question of its row, differentiable; the lowest is sought."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How an action is sought."""

    steps: int = 24
    """Of the descent."""
    lr: float = 0.15
    """First step of every component, as a share of its range; falls to 0 in a straight line."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Memory of Adam: with the usual one (0.9, 0.999) two dozen steps still swing around the minimum by 0.02."""
    undo: bool = True
    """Also seek what the source carries and the target does not; else those components stay 0."""
    pooled: bool = False
    """Compare tokens averaged over the positions: for two images whose patches do not correspond."""


def flag_choices(space: ActionSpace, undo: bool = True) -> Float[Tensor, "c k"]:
    """Every combination of the flags that occur, all else 0; the null action first. One of both views may as well be
    the target's (-1), one of the source only counts where it may have to be undone."""

    def values(t: Transformation) -> tuple[float, ...]:
        if t.graded or t.probability == 0 or not (t.both or undo):
            return (0.0,)
        return (0.0, 1.0, -1.0) if t.both else (0.0, 1.0)

    return torch.tensor(list(itertools.product(*map(values, space.transformations))))


def bounds(space: ActionSpace, undo: bool = True) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The least and the most that training may have asked of every graded component; 0 for what is not sought.

    What only a source carries can be undone and never added.
    """
    low, high = torch.zeros(space.dim), torch.zeros(space.dim)
    for place, t in enumerate(space.transformations):
        if t.graded and t.both and t.range > 0:
            low[place], high[place] = -1, 1
        elif t.graded and undo and t.probability > 0 and t.range > 0:
            low[place], high[place] = (t.neutral - t.high) / t.range, (t.neutral - t.low) / t.range
    return low, high


def descend(energy: Energy, space: ActionSpace, count: int, search: Search) -> Float[Tensor, "{count} k"]:
    """The action of lowest energy for each of `count` questions, on the host: graded components within `bounds`, flags
    as in `flag_choices`."""
    low, high = bounds(space, search.undo)
    slides = low < high
    starts = flag_choices(space, search.undo)
    actions = starts.repeat(count, 1).requires_grad_(True)
    rows = torch.arange(count).repeat_interleave(len(starts))
    solver = torch.optim.Adam([actions], lr=search.lr, betas=search.betas)
    with torch.enable_grad():
        for step in range(search.steps):
            solver.param_groups[0]["lr"] = search.lr * (1 - step / search.steps)
            solver.zero_grad()
            total = energy(rows, actions).sum()
            if not total.requires_grad:
                break  # a predictor that is not told the action has no slope
            total.backward()
            assert actions.grad is not None
            actions.grad.mul_(slides)
            solver.step()
            with torch.no_grad():
                actions.copy_(torch.where(slides, actions.clamp(low, high), actions))
    ends = actions.detach()
    lowest = energy(rows, ends).detach().view(count, -1).nan_to_num(nan=torch.inf).argmin(dim=1)
    return ends.view(count, len(starts), -1)[torch.arange(count), lowest]
