"""Which patches the student sees and which it predicts: the union of a few rectangles is dropped (paper section 3).

Of N patches, context `C = N - D` with D the union of `blocks` rectangles. The sampler "exact" trims or grows D at its
borders to exactly K patches, K the sampler's own rounded mean union, so shapes are static, nothing is truncated, no
place is favoured over its mirror image, and an image's mask does not depend on its batch. "ijepa" reproduces the
published behaviour, truncation to the batch minimum included, for comparison. "random" drops a fixed share of the
patches, each set of them as likely (MAE); "none" drops nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from iwm import config
from iwm.runtime import bounds, distributed
from iwm.runtime.devices import upload
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import seed_of, uniforms

_PER_BLOCK = 4  # random numbers a rectangle takes: area, aspect, top, left
_OF_BLOCKS = ("blocks", "block_area", "block_aspect")
UNREAD: dict[str, tuple[str, ...]] = {
    "exact": ("context_area", "ratio"),
    "ijepa": ("ratio",),
    "random": (*_OF_BLOCKS, "context_area"),
    "none": (*_OF_BLOCKS, "context_area", "ratio"),
}
"""The settings of masks that a sampler does not read."""


@dataclass(frozen=True)
class Masks:
    """Sorted positions in the h x w grid of patches, row by row, for each source in the order of `Views`."""

    context: Int64[Tensor, "s c"]
    """Patches of the source the student sees."""
    predicted: Int64[Tensor, "s q"]
    """Patches of the target that are queried and carry the loss."""


@lru_cache(maxsize=64)
def dropped_count(cfg: config.Masks, grid: tuple[int, int]) -> int:
    """K, the number of dropped patches: the mean union of the rectangles on this grid, rounded, between 1 and N - 1; of
    the sampler "random" the ratio of N likewise; of "none" 0.

    Raises UserError for a grid of fewer than two patches and for settings out of their bounds.
    """
    _check(cfg, grid)
    patches = grid[0] * grid[1]
    if cfg.sampler == "none":
        return 0
    if cfg.sampler == "random":
        return int(np.clip(round(cfg.ratio * patches), 1, patches - 1))
    # Fixed draws, so that K is a property of the grid; 8192 pin the mean to a sixth of a patch at 14 x 14.
    uniform = uniforms(0, "mask size", 0, np.arange(8192), _PER_BLOCK * cfg.blocks)
    mean = _union(cfg, grid, uniform).mean(dtype=np.float64) * patches
    return int(np.clip(round(mean), 1, patches - 1))


def query_count(cfg: config.Masks, positions: int) -> int:
    """How many of the positions to predict are queried in one step."""
    return max(1, round(cfg.queries * positions))


def is_whole(cfg: config.Masks, step: int) -> bool:
    """Whether this step shows its sources clean and whole: a share `whole` of all steps, evenly spread."""
    return step >= 0 and int((step + 1) * cfg.whole) > int(step * cfg.whole)


def source_count(cfg: config.Masks, step: int) -> int:
    """How many sources share a target in this step: one where all would be clean and whole, and where health is
    measured (steps below 0)."""
    return 1 if step < 0 or is_whole(cfg, step) else cfg.sources


def sample_masks(
    cfg: config.Masks,
    grid: tuple[int, int],
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    device: torch.device | str,
) -> Masks:
    """Masks for a batch of images on a grid of (height, width) patches.

    With every sampler but "ijepa" each is a pure function of (seed, step, index, source); the first source has the mask
    that it would have alone. A context always remains: at most N - 1 patches are dropped, and "ijepa" never reaches the
    last row and column. Raises UserError for a grid of fewer than two patches and for settings out of their bounds.
    """
    _check(cfg, grid)
    seeds = [seed_of(seed, "source", number) for number in range(source_count(cfg, step))]
    positions = zip(*(_sample(cfg, grid, own, step, indices) for own in seeds), strict=True)
    return Masks(*(upload(torch.from_numpy(_stacked(parts)), device) for parts in positions))


def _sample(
    cfg: config.Masks, grid: tuple[int, int], seed: int, step: int, indices: np.ndarray
) -> tuple[Int64[np.ndarray, "b c"], Int64[np.ndarray, "b q"]]:
    """Context and predicted positions of one source of each image."""
    if cfg.sampler != "ijepa":
        sampler = _exact if cfg.sampler == "exact" else _random
        dropped = sampler(cfg, grid, seed, step, indices)
        context, predicted = _positions(~dropped), _positions(dropped)
    else:
        dropped = _published(cfg, grid, seed, step, indices)
        context, predicted = _truncated(_context(cfg, grid, seed, step, ~dropped, indices)), _truncated(dropped)
    if cfg.predict == "all":
        predicted = np.broadcast_to(np.arange(grid[0] * grid[1]), dropped.shape).copy()
    elif cfg.predict == "visible":
        predicted = context
    count = query_count(cfg, predicted.shape[1])
    if count < predicted.shape[1]:
        keys = uniforms(seed, "queries", step, indices, predicted.shape[1])
        subset = np.argpartition(keys, count - 1, axis=1)[:, :count]
        predicted = np.take_along_axis(predicted, np.sort(subset, axis=1), axis=1)
    if is_whole(cfg, step):
        context = np.broadcast_to(np.arange(grid[0] * grid[1]), dropped.shape).copy()
    return context, predicted


def _stacked(parts: Sequence[Int64[np.ndarray, "b _n"]]) -> Int64[np.ndarray, "s n"]:
    """The positions of all sources below each other; "ijepa" cuts them to the shortest."""
    shortest = min(part.shape[1] for part in parts)
    return np.concatenate([part[:, :shortest] for part in parts]) if len(parts) > 1 else parts[0]


def require_maskable(grid: tuple[int, int]) -> None:
    """Raises UserError for a grid of fewer than two patches."""
    if grid[0] < 1 or grid[1] < 1 or grid[0] * grid[1] < 2:
        raise UserError(
            f"A grid of {grid[0]} x {grid[1]} patches cannot be masked; "
            "use larger images or a smaller encoder.patch_size."
        )


@lru_cache(maxsize=64)
def _check(cfg: config.Masks, grid: tuple[int, int]) -> None:
    require_maskable(grid)
    bounds.check(cfg, "masks.")


def _sides(
    cfg: config.Masks, grid: tuple[int, int], area: np.ndarray, aspect: np.ndarray
) -> tuple[Int64[np.ndarray, "*n"], Int64[np.ndarray, "*n"]]:
    """Height and width in patches of rectangles, from uniform numbers in [0, 1)."""
    patches = grid[0] * grid[1] * (cfg.block_area[0] + area * (cfg.block_area[1] - cfg.block_area[0]))
    ratio = cfg.block_aspect[0] + aspect * (cfg.block_aspect[1] - cfg.block_aspect[0])
    height = np.rint(np.sqrt(patches * ratio)).astype(np.int64)
    width = np.rint(np.sqrt(patches / ratio)).astype(np.int64)
    return height.clip(1, grid[0]), width.clip(1, grid[1])


def _covered(
    top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray, grid: tuple[int, int]
) -> Bool[np.ndarray, "b h w"]:
    """Union of each image's rectangles, given as arrays [b, blocks]."""
    row, column = np.arange(grid[0]), np.arange(grid[1])
    rows = (row >= top[..., None]) & (row < (top + height)[..., None])
    columns = (column >= left[..., None]) & (column < (left + width)[..., None])
    union = np.zeros((len(top), *grid), dtype=bool)
    for block in range(top.shape[1]):
        union |= rows[:, block, :, None] & columns[:, block, None, :]
    return union


def _union(cfg: config.Masks, grid: tuple[int, int], uniform: Float[np.ndarray, "b r"]) -> Bool[np.ndarray, "b h w"]:
    """Rectangles of the sampler "exact": each its own size, every place it fits in equally likely."""
    area, aspect, top, left = uniform.reshape(len(uniform), _PER_BLOCK, cfg.blocks).transpose(1, 0, 2)
    height, width = _sides(cfg, grid, area, aspect)
    top = (top * (grid[0] - height + 1)).astype(np.int64)
    left = (left * (grid[1] - width + 1)).astype(np.int64)
    return _covered(top, left, height, width, grid)


def _exact(
    cfg: config.Masks, grid: tuple[int, int], seed: int, step: int, indices: np.ndarray
) -> Bool[np.ndarray, "b n"]:
    """Exactly K dropped patches an image: the union, trimmed where it is thinnest or grown where it is nearest."""
    patches, count = grid[0] * grid[1], dropped_count(cfg, grid)
    numbers = _PER_BLOCK * cfg.blocks
    uniform = uniforms(seed, "masks", step, indices, numbers + patches)
    union = _union(cfg, grid, uniform[:, :numbers])
    # Covered patches among the 3 x 3 around each; the border is repeated, or the image's rim would be trimmed first.
    padded = np.pad(union.astype(np.int8), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    # Covered ones first, then by neighbourhood; the random part below 1 only breaks ties.
    score = (10 * union + around).reshape(len(union), patches) + uniform[:, numbers:]
    chosen = np.argpartition(score, patches - count, axis=1)[:, patches - count :]
    dropped = np.zeros((len(union), patches), dtype=bool)
    np.put_along_axis(dropped, chosen, True, axis=1)
    return dropped


def _random(
    cfg: config.Masks, grid: tuple[int, int], seed: int, step: int, indices: np.ndarray
) -> Bool[np.ndarray, "b n"]:
    """K patches of the image, every set of them as likely."""
    uniform = uniforms(seed, "masks", step, indices, grid[0] * grid[1])
    return uniform.argsort(axis=1).argsort(axis=1) < dropped_count(cfg, grid)


def _published(
    cfg: config.Masks, grid: tuple[int, int], seed: int, step: int, indices: np.ndarray
) -> Bool[np.ndarray, "b n"]:
    """The published sampler: one block size a batch, and a last row and column that no block ever reaches."""
    area, aspect = uniforms(seed, "masks batch", step, np.zeros(1, dtype=np.int64), 2).T
    height, width = _sides(cfg, grid, area, aspect)
    # Sizes stop one short of the grid, and so do the positions: the upper bound drawn was exclusive.
    height, width = min(height.item(), max(1, grid[0] - 1)), min(width.item(), max(1, grid[1] - 1))
    uniform = uniforms(seed, "masks", step, indices, 2 * cfg.blocks)
    top = (uniform[:, : cfg.blocks] * max(1, grid[0] - height)).astype(np.int64)
    left = (uniform[:, cfg.blocks :] * max(1, grid[1] - width)).astype(np.int64)
    return _covered(top, left, np.full_like(top, height), np.full_like(top, width), grid).reshape(len(uniform), -1)


def _context(
    cfg: config.Masks,
    grid: tuple[int, int],
    seed: int,
    step: int,
    visible: Bool[np.ndarray, "b n"],
    indices: np.ndarray,
) -> Bool[np.ndarray, "b n"]:
    """The published context: what is visible of one square block an image, of one size a batch. On grids so small that
    nothing is, all that is visible."""
    if cfg.context_area is None:
        return visible
    area = uniforms(seed, "context batch", step, np.zeros(1, dtype=np.int64), 1).T[0]
    square = replace(cfg, block_area=cfg.context_area, block_aspect=(1.0, 1.0))
    height, width = (int(side.item()) for side in _sides(square, grid, area, np.zeros(1)))
    height, width = min(height, max(1, grid[0] - 1)), min(width, max(1, grid[1] - 1))
    uniform = uniforms(seed, "context", step, indices, 2)
    top = (uniform[:, :1] * max(1, grid[0] - height)).astype(np.int64)
    left = (uniform[:, 1:] * max(1, grid[1] - width)).astype(np.int64)
    block = _covered(top, left, np.full_like(top, height), np.full_like(left, width), grid).reshape(len(top), -1)
    seen = visible & block
    return np.where(seen.any(axis=1, keepdims=True), seen, visible)


def _positions(chosen: Bool[np.ndarray, "b n"]) -> Int64[np.ndarray, "b c"]:
    """Sorted positions of rows that all choose equally many."""
    return np.nonzero(chosen)[1].reshape(len(chosen), -1)


def _truncated(chosen: Bool[np.ndarray, "b n"]) -> Int64[np.ndarray, "b c"]:
    """The first positions of every row, as many as the row that chooses fewest, on whatever rank."""
    order = np.argsort(~chosen, axis=1, kind="stable")
    fewest = distributed.smallest(int(chosen.sum(axis=1).min(initial=chosen.shape[1])))
    return np.ascontiguousarray(order[:, :fewest])
