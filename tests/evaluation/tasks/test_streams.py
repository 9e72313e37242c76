"""A task's images come in one order, however it is cut into batches."""

import pytest
import torch

from iwm.evaluation.tasks import streams
from iwm.evaluation.tasks.fitting import Samples


@pytest.mark.parametrize("rows", [5, 64])
def test_twins_are_shown_the_same_pictures_in_the_same_order(rows):
    samples = Samples(torch.arange(2 * 70).view(2, 70), torch.arange(70))
    chosen = torch.arange(rows)
    shared = [streams.stream(samples, chosen, 3, 8, step) for step in range(24)]
    alone = [streams.stream(samples, chosen, 3, 24, step) for step in range(8)]
    for one, other in zip(zip(*shared, strict=True), zip(*alone, strict=True), strict=True):
        assert torch.equal(torch.cat(one), torch.cat(other))
    labels = torch.cat([labels for _, labels in shared])
    assert labels.bincount(minlength=rows).sub(192 / rows).abs().max() <= 1, "every image equally often"


@pytest.mark.parametrize("counts", [(480, 240), (50, 5000, 70), (10, 10), (300,) * 8])
def test_steps_divide_between_the_twins_and_show_the_asked_epochs(counts):
    steps = streams.steps_of(counts, 5, 16)
    assert steps % len(counts) == 0
    assert steps * 16 * len(counts) == pytest.approx(5 * sum(counts), abs=16 * len(counts) ** 2)
