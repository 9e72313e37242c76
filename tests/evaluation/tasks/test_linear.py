"""Logistic and ridge regression against scikit-learn and their formulas in float64."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from evaluation.planted import clouds as planted_clouds
from iwm.data.splits import tenth_of_each_class
from iwm.evaluation.tasks import linear
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import Linear, Regression, choose_l2, choose_ridge, fit_chosen, fit_ridge
from iwm.runtime.randomness import permutation
from iwm.verbs.probe import L2

GRID = (1e-1, 1e-2, 1e-3)
BEYOND = (10.0, 100.0, 1e-5, 1e-6, 1e-7, 1e-8)


def clouds(count: int, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes, the first the most frequent, in correlated features of different scales that lie off zero;
    one does not vary."""
    fixed = np.random.default_rng(99)
    centres = fixed.normal(size=(classes, width))
    mixing = fixed.normal(size=(width, width)) * np.logspace(1, -1, width)
    generator = np.random.default_rng(seed)
    weights = np.arange(classes, 0, -1) / np.arange(classes + 1).sum()
    labels = generator.choice(classes, count, p=weights)
    values = (centres[labels] + generator.normal(size=(count, width))) @ mixing + 5
    values[:, 3] = 7.0
    return torch.from_numpy(values).float(), torch.from_numpy(labels)


def standard(train: torch.Tensor, values: torch.Tensor) -> np.ndarray:
    """Values standardised by the training images, in float64; a feature that does not vary is only centred."""
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    return ((values.double() - mean) / torch.where(std > 1e-6, std, 1.0)).numpy()


def fit_linear(values: torch.Tensor, labels: torch.Tensor, classes: int, l2: float, standardise: bool = True) -> Linear:
    return Regression.of(values, labels, classes, standardise).path([l2])[0]


def theirs(inputs: np.ndarray, labels: torch.Tensor, l2: float) -> LogisticRegression:
    return LogisticRegression(C=1 / (l2 * len(inputs)), max_iter=10000, tol=1e-10).fit(inputs, labels.numpy())


def objective(inputs: np.ndarray, labels: torch.Tensor, l2: float, weight: np.ndarray, bias: np.ndarray) -> float:
    """The module's formula, written out."""
    logits = inputs @ weight.T + bias
    top = logits.max(1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(inputs)), labels.numpy()].mean() + l2 / 2 * (weight**2).sum())


# ---- logistic regression -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", GRID)
@pytest.mark.parametrize("standardise", [True, False])
def test_the_fit_is_scikit_learns(l2, standardise):
    train, labels = clouds(600)
    test, _ = clouds(200, seed=1)
    if not standardise:  # or hundreds of iterations would be needed
        train, test = train / 10, test / 10
    ours = fit_linear(train, labels, 4, l2, standardise)
    inputs, asked = (standard(train, part) if standardise else part.double().numpy() for part in (train, test))
    reference = theirs(inputs, labels, l2)
    there = torch.from_numpy(reference.predict_proba(asked)).float()
    assert (ours.logits(test).softmax(1) - there).abs().max() < 5e-3
    least = objective(inputs, labels, l2, np.asarray(reference.coef_), np.asarray(reference.intercept_))
    reached = objective(inputs, labels, l2, ours.weight.double().numpy(), ours.bias.double().numpy())
    assert reached < least + 1e-5
    assert least < 0.9 * objective(inputs, labels, l2, np.zeros((4, 12)), np.zeros(4)), "something was learned"


def test_the_bias_is_not_penalised():
    """Under a penalty that leaves no weights the classes' frequencies are left."""
    train, labels = clouds(600)
    found = fit_linear(train, labels, 4, 1e4)
    frequencies = labels.bincount(minlength=4) / 600
    torch.testing.assert_close(found.logits(train[:5]).softmax(1), frequencies.expand(5, 4), atol=1e-3, rtol=0)


def test_a_class_without_images_is_never_the_answer():
    train, labels = clouds(300)
    found = fit_linear(train, labels, 6, 1e-3)
    assert found.logits(train).shape == (300, 6)
    assert int(found.logits(train).argmax(1).max()) < 4


def test_scale_and_place_of_a_feature_do_not_matter_unless_asked_for():
    train, labels = clouds(400)
    moved = train * torch.logspace(-2, 2, 12) + 30
    plain, other = fit_linear(train, labels, 4, 1e-2), fit_linear(moved, labels, 4, 1e-2)
    torch.testing.assert_close(other.logits(moved).softmax(1), plain.logits(train).softmax(1), atol=5e-3, rtol=0)
    raw = fit_linear(moved / 300, labels, 4, 1e-2, standardise=False)
    assert torch.equal(raw.mean, torch.zeros(12))
    assert torch.equal(raw.std, torch.ones(12))
    assert (raw.logits(moved / 300).softmax(1) - plain.logits(train).softmax(1)).abs().max() > 0.1


def test_more_images_than_the_curvature_is_measured_on():
    """Above 8,192 images the whitening sees a part of them; the minimum is that of all."""
    train, labels = clouds(9000, width=6, classes=3)
    ours = fit_linear(train, labels, 3, 1e-3)
    reference = theirs(standard(train, train), labels, 1e-3)
    there = torch.from_numpy(reference.predict_proba(standard(train, train[:300]))).float()
    assert (ours.logits(train[:300]).softmax(1) - there).abs().max() < 5e-3


@pytest.mark.parametrize("grid", [(1e-1, 1e-2, 1e-3, 1e-4), (1e-4, 1e-2, 1.0)])
def test_warm_starts_end_where_cold_ones_do(grid):
    train, labels = clouds(400)
    for l2, warm in zip(grid, Regression.of(train, labels, 4).path(grid), strict=True):
        cold = fit_linear(train, labels, 4, l2)
        torch.testing.assert_close(warm.logits(train).softmax(1), cold.logits(train).softmax(1), atol=5e-3, rtol=0)


def test_each_solution_starts_the_next():
    """Asked for the same strength again and again, few iterations each time, a fit goes on and does not begin anew."""
    train, labels = clouds(400)
    inputs = standard(train, train)
    path = [fit_linear(train, labels, 4, 1e-2), *Regression.of(train, labels, 4).path([1e-2] * 6, iterations=4)]
    least, first, *_, last = (
        objective(inputs, labels, 1e-2, fit.weight.double().numpy(), fit.bias.double().numpy()) for fit in path
    )
    assert first > least + 1e-3
    assert last - least < 0.1 * (first - least)


def test_nothing_is_computed_in_the_callers_precision():
    train, labels = clouds(300)
    plain = fit_linear(train, labels, 4, 1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        other = fit_linear(train, labels, 4, 1e-2)
        logits = other.logits(train)
    assert logits.dtype == torch.float32
    assert torch.equal(other.weight, plain.weight)
    assert torch.equal(logits, plain.logits(train))


def test_more_features_than_images_are_fitted_at_any_strength():
    """Their covariance is singular, and in single precision not even positive."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    values = 30 * torch.randn(60, 12, generator=generator) @ torch.randn(12, 768, generator=generator)
    path = Regression.of(values, labels, 3, standardise=False).path([10.0**-power for power in range(1, 9)])
    assert all(torch.isfinite(solution.weight).all() for solution in path)
    assert accuracy(path[-1].logits(values), labels) > 0.5


# ---- its strength --------------------------------------------------------------------------------------------------


def by_hand(train: torch.Tensor, labels: torch.Tensor, grid: Sequence[float], seed: int, tenths: int) -> dict:
    """scikit-learn's accuracy on the seeded tenths, fitted and standardised by the rest of each alone."""
    right: dict[float, list[bool]] = {l2: [] for l2 in grid}
    asked_of: list[int] = []
    for number in range(tenths):
        rest, tenth = tenth_of_each_class(labels, seed, number)
        assert not set(rest.tolist()) & set(tenth.tolist())
        asked_of += tenth.tolist()
        inputs, asked = (standard(train[rest], train[part]) for part in (rest, tenth))
        for l2 in grid:
            right[l2] += np.equal(theirs(inputs, labels[rest], l2).predict(asked), labels[tenth].numpy()).tolist()
    assert len(set(asked_of)) == len(asked_of), "no image is asked about twice"
    return {l2: np.mean(each) for l2, each in right.items()}


@pytest.mark.parametrize(
    ("images", "tenths"), [(1, 5), (4000, 5), (4001, 5), (6000, 4), (10_000, 2), (19_999, 2), (20_000, 1), (50_000, 1)]
)
def test_small_sets_choose_on_several_tenths(images, tenths):
    assert linear.tenths_of(images) == tenths


@pytest.mark.parametrize(("seed", "tenths"), [(0, 5), (3, 1)])
def test_every_strength_is_measured_on_the_held_out_tenths(seed, tenths, monkeypatch):
    if tenths == 1:
        monkeypatch.setattr(linear, "tenths_of", lambda images: 1)
    train, labels = clouds(500)
    grid = (1e-3, 1.0, 3e-2)
    found = choose_l2(train, labels, 4, grid, seed)
    assert [row["l2"] for row in found] == [1.0, 3e-2, 1e-3], "strongest first, however they are given"
    wanted = by_hand(train, labels, grid, seed, tenths)
    assert len(set(wanted.values())) > 1
    assert {row["l2"]: row["tenth_top1"] for row in found} == pytest.approx(wanted)


def test_without_two_images_of_a_class_the_middle_of_the_grid_is_taken():
    train, labels = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    assert choose_l2(train, labels, 4, L2, 0, beyond=True) == []
    assert torch.equal(fit_chosen(train, labels, 4, []).weight, fit_linear(train, labels, 4, 1e-3).weight)
    own = fit_chosen(train, labels, 4, [], grid=(0.5,))
    assert torch.equal(own.weight, fit_linear(train, labels, 4, 0.5).weight)
    single = choose_ridge(train[:1], train[:1], 0)
    assert torch.equal(single.weight, fit_ridge(train[:1], train[:1], 1e-2).weight)
    assert single.weight.isfinite().all()


def test_the_tenth_has_no_say_in_the_fit():
    """Its images made extreme, so that a fit to them, or their share in the standardisation, would show."""
    train, labels = clouds(500)
    _, tenth = tenth_of_each_class(labels, 0)
    path: list[linear.Linear] = []
    seen = train.clone()
    seen[tenth] = 1e4 * torch.randn(len(tenth), 12, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        real = Regression.path
        patch.setattr(linear, "tenths_of", lambda images: 1)
        patch.setattr(Regression, "path", lambda *given, **more: path.extend(found := real(*given, **more)) or found)
        choose_l2(train, labels, 4, GRID, 0)
        choose_l2(seen, labels, 4, GRID, 0)
    assert len(path) == 6
    for plain, other in zip(path[:3], path[3:], strict=True):
        assert torch.equal(plain.weight, other.weight)
        assert torch.equal(plain.mean, other.mean)


def test_the_chosen_fit_goes_the_way_of_the_choice():
    """Few iterations from nothing do not reach the minimum of a weak penalty; each solution starts the next."""
    train, labels = clouds(500)
    tried = [{"l2": l2, "tenth_top1": score} for l2, score in ((1e-2, 0.5), (1e-3, 0.6), (1e-4, 0.7), (1e-5, 0.6))]
    expected = Regression.of(train, labels, 4).path([1e-2, 1e-3, 1e-4])[-1]
    assert torch.equal(fit_chosen(train, labels, 4, tried).weight, expected.weight)
    assert fit_chosen(train, labels, 4, tried).at_grid_end == {}
    assert fit_chosen(train, labels, 4, tried[:3]).at_grid_end == {"l2": "lowest of 0.0001, 0.001, 0.01"}


def test_a_search_beyond_the_grid_starts_from_its_nearest_solution(monkeypatch):
    monkeypatch.setattr(linear, "tenths_of", lambda images: 1)
    train, labels = clouds(500)
    found = choose_l2(train, labels, 4, (1e1, 1e2), 0, beyond=True)
    rest, tenth = tenth_of_each_class(labels, 0)
    l2s = [row["l2"] for row in found]
    assert l2s[:3] == [1e2, 1e1, 1e0]
    path = Regression.of(train[rest], labels[rest], 4).path(l2s)
    for row, solution in zip(found, path, strict=True):
        assert row["tenth_top1"] == accuracy(solution.logits(train[tenth]), labels[tenth])


# ---- ridge regression ----------------------------------------------------------------------------------------------


def regression(count: int, seed: int = 0, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    values, _ = clouds(count, seed=seed)
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(5))
    fuzz = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return values, torch.from_numpy(standard(values, values)).float() @ weight + noise * fuzz + 40


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_ridge_is_scikit_learns(l2):
    values, wanted = regression(80)
    others, _ = regression(30, seed=1)
    ours = fit_ridge(values, wanted, l2)
    reference = Ridge(alpha=l2 * 80).fit(standard(values, values), wanted.double().numpy())
    np.testing.assert_allclose(ours.logits(others), reference.predict(standard(values, others)), atol=2e-4)
    np.testing.assert_allclose(ours.weight, reference.coef_, atol=1e-4)


def test_ridges_bias_is_not_penalised():
    values, wanted = regression(80)
    found = fit_ridge(values, wanted, 1e9).logits(values[:4])
    torch.testing.assert_close(found, wanted.mean(0).expand(4, 3), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("noise", "count"), [(0.01, 60), (3.0, 40), (30.0, 40), (0.01, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_ridges_strength_is_the_best_on_a_seeded_tenth(noise, count, seed):
    values, wanted = regression(count, noise=noise)
    order = permutation(seed, "ridge tenth", 0, count)
    some = max(1, count // 10)
    tenth, rest = order[:some], order[some:]
    inputs, asked = (standard(values[rest], values[part]) for part in (rest, tenth))
    truth = wanted.double().numpy()
    errors = {
        l2: ((Ridge(alpha=l2 * len(rest)).fit(inputs, truth[rest]).predict(asked) - truth[tenth]) ** 2).mean()
        for l2 in (*linear.RIDGE_GRID, *BEYOND)
    }
    best = min(linear.RIDGE_GRID, key=lambda l2: errors[l2])
    for end, further in ((max, BEYOND[:2]), (min, BEYOND[2:])):
        walk = [best, *further] if best == end(linear.RIDGE_GRID) else [best]
        worse = [errors[b] >= errors[a] for a, b in pairwise(walk)]
        best = walk[worse.index(True) if True in worse else -1]
    found, expected = choose_ridge(values, wanted, seed), fit_ridge(values, wanted, best)
    # Fitted to all rows once it is chosen; where only rounding decides between two strengths, either will do.
    torch.testing.assert_close(found.weight, expected.weight, atol=3e-5, rtol=0)
    torch.testing.assert_close(found.bias, expected.bias)


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_logistic_regression_is_scikit_learns(l2):
    train, labels = planted_clouds(1500, 24, 5)
    test, truth = planted_clouds(1000, 24, 5, seed=1)
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
    train, labels = planted_clouds(800, 24, 5)
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


def test_a_strength_is_chosen_on_images_none_of_whose_rows_were_learned_from():
    """Every image has a wanted value of its own, by chance, and four rows that tell it from all others: whoever has
    seen one row of it knows the rest, and chooses to learn by heart."""
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(60).repeat(4)
    values = torch.randn(60, 100, generator=generator)[image] + 0.01 * torch.randn(240, 100, generator=generator)
    chance = torch.randn(60, 1, generator=generator)[image]
    apart = choose_ridge(values, chance, 0, image)
    by_row = choose_ridge(values, chance, 0)
    assert apart.weight.norm() < 0.2 * by_row.weight.norm()
