"""The online probe's accuracy against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from iwm.training.online_probe import ridge_accuracy


def test_the_accuracy_is_that_of_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    labels, truth = (torch.randint(0, 4, (count,), generator=generator) for count in (200, 100))
    centres = torch.randn(4, 12, generator=generator)
    train, val = (centres[kinds] + 2 * torch.randn(len(kinds), 12, generator=generator) for kinds in (labels, truth))
    train[:, 3] = val[:, 3] = 7.0
    mean, deviation = train.double().mean(0), train.double().std(0).clamp_min(1e-6)
    inputs, exam = (((part.double() - mean) / deviation).numpy() for part in (train, val))
    strength = 1e-2 * np.trace(inputs.T @ inputs) / 12
    known = Ridge(alpha=strength).fit(inputs, np.eye(4)[labels.numpy()]).predict(exam).argmax(1)
    found = ridge_accuracy(train, labels, val, truth)
    assert found == pytest.approx((known == truth.numpy()).mean())
    assert 0.3 < found < 1
