import pytest
import torch

from iwm.model.objectives.spread import photometric_share, variance_covariance


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


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_photometric_share_of_planted_tokens(share):
    tokens = torch.randn(400, 4, 16) + 7 * torch.randn(4, 16)
    other = tokens + share**0.5 * torch.randn_like(tokens)
    assert photometric_share(other, tokens) == pytest.approx(share, rel=0.05, abs=1e-9)
    assert photometric_share(torch.randn(400, 4, 16), torch.randn(400, 4, 16)) == pytest.approx(2, rel=0.05)
