import pytest
import torch

from iwm.config import Objective
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


def test_the_change_is_that_of_all_micro_batches_however_their_means_differ():
    norm = TargetNorm(Objective(target_norm="change"), 4)
    tokens, before = torch.randn(12, 5, 4) + torch.arange(12).view(-1, 1, 1), torch.randn(12, 5, 4)
    for part, earlier in zip(tokens.split(3), before.split(3), strict=True):
        norm.observe(part, earlier)
    norm.fold()
    torch.testing.assert_close(norm.variance, (tokens - before).square().mean((0, 1)))


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
