"""Intersection over union is torchmetrics', its standard error that of many worlds."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from iwm.data.crops import IGNORED
from iwm.evaluation.tasks.iou import Counts, count


@pytest.mark.parametrize("ignored", [False, True])
def test_scores_are_those_of_torchmetrics(ignored):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (6, 11, 13), generator=generator)
    guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.roll(1, 0))
    truth[truth == 4], guess[guess == 4] = 0, 3  # class 4 neither occurs nor is predicted
    guess[:3][guess[:3] == 2] = 1
    if ignored:
        truth[torch.rand(truth.shape, generator=generator) < 0.3] = IGNORED
    counts = Counts(
        *np.stack([count(g.numpy(), t.short().numpy(), 5) for g, t in zip(guess, truth, strict=True)], axis=1)
    )
    per_class = MulticlassJaccardIndex(5, average="none", ignore_index=IGNORED)(guess, truth)
    np.testing.assert_allclose(counts.per_class_iou()[:4], per_class[:4], atol=1e-6)
    assert np.isnan(counts.per_class_iou()[4])
    mean = MulticlassJaccardIndex(5, average="macro", ignore_index=IGNORED)(guess, truth)
    assert counts.miou() == pytest.approx(float(mean), abs=1e-6)
    accuracy = MulticlassAccuracy(5, average="micro", ignore_index=IGNORED)(guess, truth)
    assert counts.pixel_accuracy() == pytest.approx(float(accuracy), abs=1e-6)
    everywhere = torch.full_like(guess, 3)
    expected = MulticlassJaccardIndex(5, average="macro", ignore_index=IGNORED)(everywhere, truth)
    assert counts.majority(3).miou() == pytest.approx(float(expected), abs=1e-6)


def test_the_standard_error_is_that_of_many_worlds():
    """Images whose IoU scatters: the bootstrap from one set agrees with the scatter over many sets."""
    generator = np.random.default_rng(0)

    def world() -> Counts:
        truth = np.full((40, 2), 100)
        hits = generator.integers(20, 101, (40, 2))
        return Counts(hits, truth, hits + (truth - hits)[:, ::-1])

    scatter = np.std([world().miou() for _ in range(300)])
    assert np.mean([world().standard_error(seed) for seed in range(10)]) == pytest.approx(scatter, rel=0.2)
