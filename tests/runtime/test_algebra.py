"""Ranks and distances against brute force, ridge regression against scikit-learn, schedules at their ends."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from iwm.runtime import algebra


def test_chance_is_the_harmonic_number_over_the_bank():
    assert algebra.chance(256) == pytest.approx(0.0239, abs=5e-5)
    assert algebra.chance(1) == 1


def test_ranks_against_brute_force():
    generator = np.random.default_rng(0)
    distances = generator.integers(0, 6, (20, 20)).astype(np.float64)
    wanted = []
    for j in range(20):
        others = np.delete(distances[j], j)
        wanted.append(1 + (others < distances[j, j]).sum() + 0.5 * (others == distances[j, j]).sum())
    assert algebra.ranks(torch.from_numpy(distances)).tolist() == wanted


def test_a_non_finite_prediction_ranks_last():
    distances = torch.rand(4, 4)
    distances[2] = float("nan")
    assert algebra.ranks(distances)[2] == 4


def test_squared_distances_against_the_formula():
    a, b = torch.randn(3, 4, 5) + 100, torch.randn(6, 4, 5) + 100
    wanted = (a.double()[:, None] - b.double()[None]).square().sum((2, 3))
    torch.testing.assert_close(algebra.squared_distances(a, b), wanted, rtol=1e-6, atol=1e-6)


def test_the_cosine_is_half_a_wave():
    assert algebra.cosine(3.0, 1.0, 0.0) == 3.0
    assert algebra.cosine(3.0, 1.0, math.pi) == 1.0
    assert algebra.cosine(3.0, 1.0, math.pi / 2) == pytest.approx(2.0)
    assert algebra.cosine(0.0, 1.0, math.pi / 3) == pytest.approx(0.25)


def test_what_hardly_varies_keeps_its_scale():
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 1] = 7.0
    values[:, 2] *= 1e-9
    mean, deviation = algebra.standardisation(values)
    expected = values.numpy().std(0)
    np.testing.assert_allclose(mean, values.numpy().mean(0))
    np.testing.assert_allclose(deviation, [expected[0], 1.0, 1.0, expected[3]])


def test_a_floor_is_the_least_that_is_divided_by():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 1] *= 1e-9
    _, deviation = algebra.standardisation(values, correction=1, floor=1e-6)
    expected = values.numpy().std(0, ddof=1)
    np.testing.assert_allclose(deviation, [expected[0], 1e-6, expected[2]])


def test_ridge_is_scikit_learns():
    generator = np.random.default_rng(0)
    inputs, wanted = generator.normal(size=(60, 5)), generator.normal(1, 2, (60, 3))
    inputs -= inputs.mean(0)
    weight, bias = algebra.ridge(torch.from_numpy(inputs), torch.from_numpy(wanted), 0.1)
    known = Ridge(alpha=0.1 * 60).fit(inputs, wanted)
    np.testing.assert_allclose(weight.T, known.coef_, atol=1e-12)
    np.testing.assert_allclose(bias, known.intercept_, atol=1e-12)


@pytest.mark.parametrize("count", [8, 30])  # fewer rows than the 12 inputs, and more
def test_leaving_a_row_out_is_a_fit_without_it(count):
    generator = np.random.default_rng(count)
    inputs, wanted = generator.normal(size=(count, 12)), generator.normal(size=(count, 3))
    inputs -= inputs.mean(0)
    found = algebra.left_out(torch.from_numpy(inputs), torch.from_numpy(wanted), 0.1).numpy()
    for row in range(count):
        others = np.delete(np.arange(count), row)
        without = Ridge(alpha=0.1 * count).fit(inputs[others], wanted[others])
        np.testing.assert_allclose(found[row], without.predict(inputs[[row]])[0], rtol=1e-9)


def test_ridge_of_sums_is_scikit_learns_on_standardised_inputs():
    """Batch by batch, with features of very different scales, one constant and one far from 0."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(60, 5)) * [1, 100, 0.01, 1, 0] + [0, 0, 0, 1000, 7]
    wanted = generator.normal(1, 2, (60, 3))
    sums = algebra.RidgeSums(5, 3)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 60)):
        sums.add(torch.from_numpy(inputs[rows]).float(), torch.from_numpy(wanted[rows]))
    inputs = inputs.astype(np.float32).astype(np.float64)
    weight, bias = sums.solve(0.1)
    known = make_pipeline(StandardScaler(), Ridge(alpha=0.1 * 60)).fit(inputs, wanted)
    guess = inputs @ weight.numpy() + bias.numpy()
    np.testing.assert_allclose(guess, known.predict(inputs), atol=1e-6)
    assert sums.error(weight, bias) == pytest.approx(((guess - wanted) ** 2).mean())


def test_psnr_against_the_formula():
    first, second = torch.rand(2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    first[1] = second[1]
    expected = 10 * np.log10(1 / ((first[0] - second[0]).numpy().astype(np.float64) ** 2).mean())
    np.testing.assert_allclose(algebra.psnr(first, second), [expected, 10 * np.log10(12 * 255**2)])


def test_a_single_part_is_not_copied():
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    assert torch.equal(algebra.joined(parts), torch.cat(parts))
    assert algebra.joined(parts[:1]) is parts[0]


WEAKER, STRONGER = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8], [1.0, 10.0, 100.0]


@pytest.mark.parametrize(
    ("best", "further"),
    [(1e-2, []), (1e-7, WEAKER), (10.0, STRONGER), (1e-12, WEAKER), (1e9, STRONGER)],
)
def test_a_search_goes_on_until_its_best_lies_between_others(best, further):
    """A score with one peak, at `best`."""
    asked: list[float] = []

    def scores(strengths):
        asked.extend(strengths)
        return [-abs(math.log10(strength / best)) for strength in strengths]

    tried = algebra.search((1e-2, 1e-3, 1e-1), scores)
    assert list(tried) == asked, "each once"
    assert asked == [1e-1, 1e-2, 1e-3, *further], "exactly, for the numbers are printed"
    assert list(algebra.search((1e-2, 1e-3, 1e-1), scores, beyond=False)) == [1e-1, 1e-2, 1e-3]


def test_a_search_stops_where_nothing_gets_better():
    tried = algebra.search((1e-2, 1e-1), lambda strengths: [1.0 for _ in strengths])
    assert list(tried) == [1e-1, 1e-2, 1.0]


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_strength_of_summed_rows_is_chosen_on_the_held_rows_and_beyond_the_grid(noise):
    """Without noise the weakest penalty is best, with much of it one that is stronger than all of the grid."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(60, 20, generator=generator), 0.3 * torch.randn(20, 3, generator=generator)
    wanted = inputs @ weight + noise * torch.randn(60, 3, generator=generator)
    fitted, held = algebra.RidgeSums(20, 3), algebra.RidgeSums(20, 3)
    fitted.add(inputs[:30], wanted[:30])
    held.add(inputs[30:], wanted[30:])
    found = fitted.choose(held, [1e-2, 1e-3])
    rates = [10.0**power for power in range(-8, 3)]
    errors = {l2: held.error(*fitted.solve(l2)) for l2 in rates}
    best = min(rates, key=lambda l2: errors[l2])
    assert best in ((1.0, 10.0, 100.0) if noise else (1e-8,)), "beyond the grid"
    for ours, theirs in zip(found, fitted.solve(best), strict=True):
        torch.testing.assert_close(ours, theirs)
