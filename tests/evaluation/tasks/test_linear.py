"""Logistic and ridge regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from evaluation.planted import clouds
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import choose_ridge, fit_linear, fit_ridge


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_logistic_regression_is_scikit_learns(l2):
    train, labels = clouds(1500, 24, 5)
    test, truth = clouds(1000, 24, 5, seed=1)
    ours = fit_linear(train, labels, 5, l2)
    scale = train.std(0, correction=0).clamp_min(1e-6)
    theirs = LogisticRegression(C=1 / (l2 * 1500), max_iter=10000, tol=1e-8)
    theirs.fit(((train - train.mean(0)) / scale).double().numpy(), labels.numpy())
    there = torch.from_numpy(theirs.predict_proba(((test - train.mean(0)) / scale).double().numpy())).float()
    here = ours.logits(test).softmax(1)
    assert abs(accuracy(here, truth) - accuracy(there, truth)) <= 0.01
    assert (here - there).abs().max() < 0.02
    assert accuracy(here, truth) > 0.3


def test_features_are_left_at_their_scale_when_asked():
    train, labels = clouds(800, 24, 5)
    ours = fit_linear(train, labels, 5, 1e-3, standardise=False)
    theirs = LogisticRegression(C=1 / (1e-3 * 800), max_iter=10000, tol=1e-8)
    theirs.fit(train.double().numpy(), labels.numpy())
    there = torch.from_numpy(theirs.predict_proba(train.double().numpy())).float()
    assert (ours.logits(train).softmax(1) - there).abs().max() < 0.02
    assert (fit_linear(train, labels, 5, 1e-3).logits(train).softmax(1) - there).abs().max() > 0.05


def test_ridge_against_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    values, wanted = generator.normal(3, 2, (60, 5)), generator.normal(size=(60, 2))
    standard = (values - values.mean(0)) / values.std(0)
    theirs = Ridge(alpha=0.1 * 60).fit(standard, wanted).predict(standard)
    ours = fit_ridge(torch.tensor(values), torch.tensor(wanted), 0.1).logits(torch.tensor(values))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_ridge_takes_the_strength_that_generalises() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 30, generator=generator)
    chance = torch.randn(40, 1, generator=generator)
    noise = choose_ridge(values, chance, 0)
    law = choose_ridge(values, values[:, :1], 0)
    assert noise.weight.norm() < 0.5 * fit_ridge(values, chance, 1e-4).weight.norm()
    assert law.weight[0, 0] == pytest.approx(float(values[:, 0].std(correction=0)), rel=0.01)
