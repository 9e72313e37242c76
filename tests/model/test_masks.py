from dataclasses import replace

import numpy as np
import pytest
import torch

from iwm import config
from iwm.model.masks import UNREAD, dropped_count, is_whole, sample_masks, source_count
from iwm.runtime.errors import UserError

EXACT = config.Masks()
PUBLISHED = config.Masks(sampler="ijepa")
SQUARE = [(side, side) for side in range(4, 17)]
OTHER = [(4, 16), (16, 4), (5, 9), (14, 8), (2, 2), (1, 2), (1, 12), (3, 1)]


def covered(positions: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """How often each patch of the grid is among the positions, as a fraction of the images."""
    counts = torch.bincount(positions.flatten(), minlength=grid[0] * grid[1])
    return counts.reshape(grid).numpy() / len(positions)


@pytest.mark.parametrize("grid", SQUARE + OTHER, ids=str)
def test_exact_sizes(grid):
    patches, count = grid[0] * grid[1], dropped_count(EXACT, grid)
    assert 1 <= count <= patches - 1
    masks = sample_masks(EXACT, grid, 0, 0, np.arange(50), "cpu")
    assert masks.context.shape == (50, patches - count)
    assert masks.predicted.shape == (50, count)
    assert masks.context.dtype == masks.predicted.dtype == torch.int64
    together = torch.cat([masks.context, masks.predicted], dim=1).sort(dim=1).values
    assert (together == torch.arange(patches)).all(), "context and dropped patches must share out the grid"
    for positions in (masks.context, masks.predicted):
        assert (positions.diff(dim=1) > 0).all(), "positions must be sorted"


def test_count_is_the_mean_union():
    """At 14 x 14 the paper's rectangles cover about 93 of 196 patches on average."""
    assert dropped_count(EXACT, (14, 14)) in (93, 94)
    assert dropped_count(config.Masks(blocks=1, block_area=(1, 1), block_aspect=(1, 1)), (8, 8)) == 63


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14), (5, 9)], ids=str)
def test_coverage_is_symmetric_and_reaches_every_patch(grid):
    coverage = covered(sample_masks(EXACT, grid, 0, 0, np.arange(20_000), "cpu").predicted, grid)
    assert np.abs(coverage - coverage[::-1]).max() < 0.02
    assert np.abs(coverage - coverage[:, ::-1]).max() < 0.02
    assert coverage.min() > 0.02
    assert coverage.max() < 0.98


def test_dropped_patches_keep_together():
    """Trimming and growing leave rectangles, not specks: nearly every dropped patch touches another."""
    masks = sample_masks(EXACT, (14, 14), 0, 0, np.arange(2000), "cpu")
    dropped = torch.zeros(2000, 196, dtype=torch.bool).scatter(1, masks.predicted, True).reshape(-1, 14, 14)
    padded = torch.nn.functional.pad(dropped, (1, 1, 1, 1))
    touching = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
    assert (dropped & ~touching).sum() / dropped.sum() < 0.005


def test_exact_masks_do_not_depend_on_the_batch():
    indices = np.arange(100, 164)
    batch = sample_masks(EXACT, (8, 8), 5, 9, indices, "cpu")
    for place in (0, 31, 63):
        alone = sample_masks(EXACT, (8, 8), 5, 9, indices[place : place + 1], "cpu")
        assert (alone.context[0] == batch.context[place]).all()
        assert (alone.predicted[0] == batch.predicted[place]).all()


def test_masks_differ_by_seed_step_and_index():
    first = sample_masks(EXACT, (14, 14), 0, 0, np.arange(20), "cpu").predicted
    assert len(first.unique(dim=0)) == 20
    for seed, step in ((1, 0), (0, 1)):
        other = sample_masks(EXACT, (14, 14), seed, step, np.arange(20), "cpu").predicted
        assert (first != other).any(dim=1).all()


def test_which_positions_are_predicted():
    every = sample_masks(config.Masks(predict="all"), (4, 6), 0, 0, np.arange(3), "cpu")
    assert (every.predicted == torch.arange(24)).all()
    assert every.context.shape[1] == 24 - dropped_count(EXACT, (4, 6))
    visible = sample_masks(config.Masks(predict="visible"), (4, 6), 0, 0, np.arange(3), "cpu")
    assert (visible.predicted == visible.context).all()
    assert (visible.context == every.context).all()


def test_a_share_of_the_positions_is_queried_each_as_often():
    half = config.Masks(predict="all", queries=0.5)
    masks = sample_masks(half, (4, 6), 0, 0, np.arange(4000), "cpu")
    assert masks.predicted.shape == (4000, 12)
    assert (masks.predicted.diff(dim=1) > 0).all(), "sorted, none twice"
    assert np.abs(covered(masks.predicted, (4, 6)) - 0.5).max() < 0.03
    whole = sample_masks(config.Masks(predict="all"), (4, 6), 0, 0, np.arange(4000), "cpu")
    assert (masks.context == whole.context).all(), "the student's view stays"
    dropped = sample_masks(config.Masks(queries=0.3), (4, 6), 0, 0, np.arange(50), "cpu")
    everything = sample_masks(EXACT, (4, 6), 0, 0, np.arange(50), "cpu").predicted
    assert all(set(few.tolist()) < set(of.tolist()) for few, of in zip(dropped.predicted, everything, strict=True))


def test_published_sampler_never_drops_the_last_row_and_column():
    for step in range(20):
        coverage = covered(sample_masks(PUBLISHED, (8, 8), 0, step, np.arange(64), "cpu").predicted, (8, 8))
        assert not coverage[-1].any()
        assert not coverage[:, -1].any()


def test_published_sampler_starves_the_lower_rows_of_context():
    """Truncation to the batch minimum cuts the rows' ends, so the lower part of the image is rarely context."""
    batches = [
        covered(sample_masks(PUBLISHED, (16, 16), 0, step, np.arange(128), "cpu").context, (16, 16))
        for step in range(20)
    ]
    rows = np.mean(batches, axis=0).mean(axis=1)
    assert rows[0] > 0.7
    assert rows[15] < 0.1
    exact = sample_masks(EXACT, (16, 16), 0, 0, np.arange(2000), "cpu").context
    assert covered(exact, (16, 16)).mean(axis=1)[15] > 0.7


def test_published_sampler_depends_on_the_batch():
    one = sample_masks(PUBLISHED, (14, 14), 0, 0, np.arange(1), "cpu")
    many = sample_masks(PUBLISHED, (14, 14), 0, 0, np.arange(256), "cpu")
    assert many.context.shape[1] < one.context.shape[1]
    assert many.context.shape[1] + many.predicted.shape[1] < 196


@pytest.mark.parametrize("grid", SQUARE + OTHER, ids=str)
def test_published_sampler_leaves_a_context_on_every_grid(grid):
    for step in range(10):
        masks = sample_masks(PUBLISHED, grid, 0, step, np.arange(64), "cpu")
        assert masks.context.shape[1] > 0
        assert masks.predicted.shape[1] > 0
        assert not set(masks.context[0].tolist()) & set(masks.predicted[0].tolist())


@pytest.mark.parametrize(
    ("cfg", "grid", "named"),
    [
        (EXACT, (1, 1), "encoder.patch_size"),
        (EXACT, (0, 4), "encoder.patch_size"),
        (config.Masks(queries=0.0), (8, 8), "masks.queries"),
        (config.Masks(blocks=0), (8, 8), "masks.blocks"),
        (config.Masks(block_area=(0.2, 0.1)), (8, 8), "masks.block_area"),
        (config.Masks(block_area=(0.2, 1.1)), (8, 8), "masks.block_area"),
        (config.Masks(block_aspect=(0.0, 1.0)), (8, 8), "masks.block_aspect"),
    ],
)
def test_bad_settings_are_named(cfg, grid, named):
    with pytest.raises(UserError, match=named):
        sample_masks(cfg, grid, 0, 0, np.arange(2), "cpu")


def test_random_masks_drop_the_ratio_and_favour_no_patch():
    cfg = config.Masks(sampler="random", ratio=0.75)
    masks = sample_masks(cfg, (4, 4), 0, 0, np.arange(4000), "cpu")
    assert masks.context.shape == (4000, 4)
    assert masks.predicted.shape == (4000, 12)
    together = torch.cat([masks.context, masks.predicted], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(16).expand(4000, -1))
    seen = torch.bincount(masks.context.flatten(), minlength=16) / 4000
    assert (seen - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
    one = sample_masks(cfg, (4, 4), 0, 0, np.arange(7, 8), "cpu")
    assert torch.equal(one.context[0], masks.context[7]), "an image's mask does not depend on its batch"
    assert not torch.equal(sample_masks(cfg, (4, 4), 0, 1, np.arange(4000), "cpu").context, masks.context)


def test_without_masks_everything_is_seen():
    masks = sample_masks(config.Masks(sampler="none"), (4, 4), 0, 0, np.arange(3), "cpu")
    assert torch.equal(masks.context, torch.arange(16).expand(3, -1))
    assert masks.predicted.shape == (3, 0)


def test_a_share_of_the_steps_shows_everything():
    cfg = config.Masks(whole=0.25)
    whole = [is_whole(cfg, step) for step in range(4000)]
    assert sum(whole) == 1000
    assert max(len(run) for run in "".join("x " if w else "-" for w in whole).split()) <= 5, "evenly spread"
    assert not any(is_whole(config.Masks(), step) for step in range(100))
    assert not is_whole(config.Masks(whole=1.0), -1), "health is measured on the masked task"
    everything = sample_masks(config.Masks(whole=1.0), (4, 6), 0, 3, np.arange(5), "cpu")
    assert (everything.context == torch.arange(24)).all()
    assert (everything.predicted == sample_masks(EXACT, (4, 6), 0, 3, np.arange(5), "cpu").predicted).all()


def test_the_published_context_lies_in_a_square_block():
    """Of 14 x 14 patches 0.85-1 of the area: 13 x 13 at most, which the published positions leave at the corner."""
    cfg = config.Masks(sampler="ijepa", context_area=(0.25, 0.36))
    masks = sample_masks(cfg, (14, 14), 0, 5, np.arange(64), "cpu")
    plain = sample_masks(PUBLISHED, (14, 14), 0, 5, np.arange(64), "cpu")
    assert torch.equal(masks.predicted, plain.predicted), "targets are drawn as without it"
    for context, predicted in zip(masks.context, masks.predicted, strict=True):
        assert not set(context.tolist()) & set(predicted.tolist())
        rows, columns = context // 14, context % 14
        assert int(rows.max() - rows.min()) < 9
        assert int(columns.max() - columns.min()) < 9
    corners = {(int((c // 14).min()), int((c % 14).min())) for c in masks.context}
    assert len(corners) > 10, "every image has its own place"
    widest = sample_masks(config.Masks(sampler="ijepa", context_area=(0.85, 1.0)), (14, 14), 0, 5, np.arange(8), "cpu")
    assert int((widest.context % 14).max()) <= 12
    assert int((widest.context // 14).max()) <= 12
    tiny = sample_masks(config.Masks(sampler="ijepa", context_area=(0.85, 1.0)), (4, 4), 0, 5, np.arange(64), "cpu")
    assert tiny.context.shape[1] >= 1, "a context always remains"


@pytest.mark.parametrize(
    "cfg", [EXACT, config.Masks(sampler="random"), config.Masks(predict="all", queries=0.4)], ids=str
)
def test_every_source_has_a_mask_of_its_own(cfg):
    """The first has the one that it has alone, the others are as much functions of seed, step and image."""
    images, few = np.arange(40), np.arange(7, 11)
    alone = sample_masks(cfg, (6, 6), 2, 5, images, "cpu")
    masks = sample_masks(replace(cfg, sources=3), (6, 6), 2, 5, images, "cpu")
    for name in ("context", "predicted"):
        one, many = getattr(alone, name), getattr(masks, name)
        assert many.shape == (120, one.shape[1])
        assert torch.equal(many[:40], one)
        assert not torch.equal(many[40:80], one)
        assert not torch.equal(many[40:80], many[80:])
        subset = getattr(sample_masks(replace(cfg, sources=2), (6, 6), 2, 5, few, "cpu"), name)
        assert torch.equal(subset[4:], many[47:51])


def test_published_masks_of_several_sources_are_cut_to_the_shortest():
    sizes = set()
    for step in range(20):
        masks = sample_masks(replace(PUBLISHED, sources=2), (14, 14), 0, step, np.arange(8), "cpu")
        first = sample_masks(PUBLISHED, (14, 14), 0, step, np.arange(8), "cpu")
        assert masks.context.shape[1] <= first.context.shape[1]
        assert torch.equal(masks.context[:8], first.context[:, : masks.context.shape[1]])
        sizes.add(masks.context.shape[1] < first.context.shape[1])
    assert sizes == {True, False}


def test_one_source_where_all_would_be_the_whole_image_or_health_is_measured():
    cfg = config.Masks(sources=4, whole=0.5)
    assert [source_count(cfg, step) for step in range(-1, 4)] == [1, 4, 1, 4, 1]
    assert len(sample_masks(cfg, (4, 4), 0, 1, np.arange(3), "cpu").context) == 3


OTHERS = {"blocks": 2, "block_area": (0.3, 0.4), "block_aspect": (2.0, 3.0), "context_area": (0.3, 0.4), "ratio": 0.5}


@pytest.mark.parametrize("sampler", UNREAD)
def test_a_sampler_reads_what_training_does_not_warn_of(sampler):
    def context(**settings) -> torch.Tensor:
        cfg = config.Masks(sampler=sampler, predict="all", **settings)
        return sample_masks(cfg, (14, 14), 0, 0, np.arange(20), "cpu").context

    plain = context()
    unread = {name for name, value in OTHERS.items() if torch.equal(context(**{name: value}), plain)}
    assert unread == set(UNREAD[sampler])
