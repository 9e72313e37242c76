import math

import pytest
import torch

from iwm.config import Objective
from iwm.model.objectives.joint import info_nce, regression
from iwm.model.objectives.latent import latent_loss
from iwm.model.objectives.pixels import patches_of
from iwm.model.objectives.spread import variance_covariance
from iwm.model.objectives.target_norm import FLOOR, TargetNorm


def batch_norm(width: int) -> TargetNorm:
    return TargetNorm(Objective(target_norm="batch"), width)


def test_token_normalisation_is_layer_norm_without_affine():
    tokens = torch.randn(2, 3, 8) * 5 + 1
    normed = TargetNorm(Objective(), 8)(tokens)
    wanted = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(normed, wanted)


def test_batch_statistics_are_per_channel():
    tokens = torch.randn(64, 9, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.arange(4)
    norm = batch_norm(4)
    norm.observe(tokens)
    norm.fold()
    normed = norm(tokens)
    torch.testing.assert_close(normed.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var((0, 1), correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_micro_batches_change_nothing():
    whole, parts = batch_norm(4), batch_norm(4)
    for _ in range(3):
        tokens = torch.randn(12, 5, 4) + 2
        whole.observe(tokens)
        for part in tokens.split(3):
            parts.observe(part)
        whole.fold()
        parts.fold()
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.variance, parts.variance)


def test_running_statistics_follow_a_drift():
    norm = batch_norm(1)
    for _ in range(100):
        norm.observe(torch.randn(50, 2, 1))
        norm.fold()
    for _ in range(100):
        norm.observe(torch.randn(50, 2, 1) * 3 + 10)
        norm.fold()
    assert norm.mean.item() == pytest.approx(10, abs=0.5)
    assert norm.variance.item() == pytest.approx(9, rel=0.2)


def test_a_dead_channel_is_not_blown_up():
    norm = batch_norm(2)
    tokens = torch.randn(40, 3, 2)
    tokens[..., 1] = 7.0
    norm.observe(tokens)
    norm.fold()
    assert norm.variance[1] < FLOOR
    assert norm(tokens)[..., 1].abs().max() < 1e-2


def test_a_non_finite_batch_leaves_the_statistics_alone():
    norm = batch_norm(2)
    norm.observe(torch.randn(10, 3, 2))
    norm.fold()
    before = norm.mean.clone(), norm.variance.clone()
    norm.observe(torch.full((10, 3, 2), float("nan")))
    norm.fold()
    assert torch.equal(norm.mean, before[0])
    assert torch.equal(norm.variance, before[1])


def test_evaluation_observes_nothing_by_itself():
    norm = batch_norm(2)
    norm(torch.randn(10, 3, 2))
    norm.fold()
    assert torch.equal(norm.mean, torch.zeros(2))


def test_loss_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wanted = ((a.double() - b.double()) ** 2).sum() / 24
    assert latent_loss(a, b).item() == pytest.approx(wanted.item())


def test_variance_and_covariance_against_the_formula():
    tokens = torch.randn(40, 3, 4) * torch.tensor([0.3, 0.5, 2.0, 1.0])
    positions = torch.arange(3).expand(40, -1)
    z = (tokens - tokens.mean(0)).flatten(0, 1).double()
    cov = z.T @ z / (len(z) - 1)
    wanted = (
        torch.relu(1 - (cov.diagonal() + 1e-4).sqrt()).mean(),
        (cov.square().sum() - cov.diagonal().square().sum()) / 4,
    )
    for term, value in zip(variance_covariance(tokens, positions, 3), wanted, strict=True):
        assert term.item() == pytest.approx(value.item(), rel=1e-4)


def test_features_that_know_only_the_position_do_not_satisfy_the_variance_term():
    by_position = torch.randn(1, 9, 4).mul(10).expand(32, -1, -1)
    keep = torch.stack([torch.randperm(9)[:5] for _ in range(32)])
    context = by_position.gather(1, keep[..., None].expand(-1, -1, 4))
    variance, covariance = variance_covariance(context, keep, 9)
    assert variance.item() == pytest.approx(0.99, abs=1e-3)
    assert covariance.item() == pytest.approx(0, abs=1e-6)


def test_the_terms_stay_in_float32_under_autocast():
    tokens = torch.randn(40, 3, 4)
    positions = torch.arange(3).expand(40, -1)
    plain = variance_covariance(tokens, positions, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = variance_covariance(tokens, positions, 3)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_info_nce_is_moco_v3s_formula_in_float64():
    queries, keys = torch.randn(6, 5), torch.randn(6, 5)
    total = 0.0
    for i in range(6):
        alike = [math.exp(cosine(queries[i].double(), keys[j].double()) / 0.2) for j in range(6)]
        total -= math.log(alike[i] / sum(alike))
    assert info_nce(queries, keys, 0.2).item() == pytest.approx(2 * 0.2 * total / 6, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(queries, keys, 0.2).item() == pytest.approx(2 * 0.2 * total / 6, rel=1e-5)


def test_regression_is_byols_formula_in_float64():
    queries, keys = torch.randn(6, 5), torch.randn(6, 5)
    pairs = list(zip(queries.double(), keys.double(), strict=True))
    wanted = sum(float((q / q.norm() - k / k.norm()).square().sum()) for q, k in pairs) / 6
    assert regression(queries, keys).item() == pytest.approx(wanted, rel=1e-5)


def test_patches_are_cut_in_maes_order():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 6, 12)
    for number, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(
            patches[1, number], images[1, :, row : row + 2, column : column + 2].permute(1, 2, 0).flatten()
        )
