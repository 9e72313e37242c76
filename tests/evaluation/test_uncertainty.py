"""Standard errors and intervals against scipy, against a formula, or against many repetitions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from iwm.evaluation import uncertainty


def test_the_error_of_a_mean_is_scipys():
    values = np.random.default_rng(0).normal(size=50)
    assert uncertainty.standard_error(torch.from_numpy(values)) == pytest.approx(stats.sem(values))
    assert uncertainty.seed_error(values.tolist()) == pytest.approx(stats.sem(values))
    assert math.isnan(uncertainty.standard_error(torch.ones(1)))


def test_the_error_of_an_accuracy_is_the_scatter_of_many():
    assert uncertainty.accuracy_error(0.3, 200) == pytest.approx(stats.binom(200, 0.3).std() / 200)
    generator = np.random.default_rng(0)
    a, b = (generator.binomial(200, top1, 20_000) / 200 for top1 in (0.3, 0.6))
    assert uncertainty.difference_error(0.3, 0.6, 200) == pytest.approx((a - b).std(), rel=0.03)


def test_few_images_that_are_all_right_or_all_wrong_are_not_certain():
    for count, place in ((1, "level with"), (2, "level with"), (5, "above"), (1000, "above")):
        assert uncertainty.standing(1.0, 0.0, uncertainty.difference_error(1.0, 0.0, count)) == place


def test_every_accuracy_of_a_result_has_its_error():
    numbers = {"top1": 0.3, "single_top1": 0.6, "balanced_top1": 0.4, "top5": 0.9, "n_val": 200}
    wanted = {f"{key}_standard_error": uncertainty.accuracy_error(numbers[key], 200) for key in ("top1", "single_top1")}
    assert uncertainty.accuracy_errors(numbers, 200) == wanted


def test_the_bootstrap_of_a_single_image_is_not_known():
    assert math.isnan(uncertainty.bootstrap_error(lambda weights: weights @ np.ones(1), 1, 0))


def test_the_bootstrap_of_a_mean_has_the_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    found = uncertainty.bootstrap_error(lambda weights: weights @ values / len(values), len(values), 0, 4000)
    assert found == pytest.approx(stats.sem(values), rel=0.05)
    assert found == uncertainty.bootstrap_error(lambda weights: weights @ values / len(values), len(values), 0, 4000)


def test_errors_of_independent_numbers_add_in_squares():
    assert uncertainty.combined_error(3.0, 4.0) == 5.0
    assert uncertainty.average_error([3.0, 4.0]) == 2.5
    assert uncertainty.average_error([]) == 0.0
    numbers = np.random.default_rng(0).normal(0, [1, 2, 3], (50_000, 3))
    assert uncertainty.average_error([1.0, 2.0, 3.0]) == pytest.approx(numbers.mean(1).std(), rel=0.02)


@pytest.mark.parametrize("n", [4, 5, 20])
def test_the_interval_of_a_correlation_is_scipys(n):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    low, high = stats.pearsonr(x, y).confidence_interval(0.95)
    assert uncertainty.correlation_interval(np.corrcoef(x, y)[0, 1], n) == pytest.approx((low, high), abs=1e-6)


def test_a_perfect_correlation_has_an_interval():
    low, high = uncertainty.correlation_interval(1.0, 5)
    assert 0.99 < low <= high <= 1


@pytest.mark.parametrize(
    ("value", "control", "error", "place"),
    [
        (0.5, 0.3, 0.09, "above"),
        (0.5, 0.3, 0.11, "level with"),
        (0.3, 0.5, 0.09, "BELOW"),
        (0.5, 0.5, math.nan, "level with"),
        (0.5, 0.3, 0.0, "above"),
        (0.3397321105, 0.3397321429, 9e-9, "level with"),
    ],
)
def test_numbers_within_two_errors_are_level(value, control, error, place):
    assert uncertainty.standing(value, control, error) == place


@pytest.mark.parametrize("count", [*range(2, 14), 20, 50, 1000])
def test_the_quantile_over_seeds_is_students(count):
    assert uncertainty.t_quantile(count) == pytest.approx(stats.t.ppf(0.975, count - 1), abs=3e-3)


def test_three_seeds_need_more_than_two_errors():
    assert uncertainty.standing(0.5, 0.3, 0.05) == "above"
    assert uncertainty.standing(0.5, 0.3, 0.05, seeds=3) == "level with"
    assert uncertainty.standing(0.5, 0.3, 0.05, seeds=4) == "above"
    assert uncertainty.standing(0.3, 0.5, 0.046, seeds=3) == "BELOW"
