import math

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm.actions.views import make_views
from iwm.config import Config, Masks, Objective
from iwm.model.masks import sample_masks
from iwm.model.objectives.joint import Comparison, Joint, info_nce, regression
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import fields


def joint(invariance: str) -> Comparison:
    torch.manual_seed(0)
    return Comparison(Objective(kind="joint", invariance=invariance, projector_width=32, projector_dim=8), 16)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("invariance", "layers", "norms"), [("contrastive", (3, 2), (3, 2)), ("regression", (2, 2), (1, 1))]
)
def test_layers_are_the_authors(invariance, layers, norms):
    parts = joint(invariance)
    for part, linear, norm in zip((parts.projector, parts.predictor), layers, norms, strict=True):
        assert sum(isinstance(layer, torch.nn.Linear) for layer in part) == linear
        assert sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in part) == norm
    assert isinstance(parts.projector[-1], torch.nn.BatchNorm1d) == (invariance == "contrastive")


@pytest.mark.parametrize("invariance", ["contrastive", "regression"])
def test_the_loss_is_symmetrised(invariance):
    parts = joint(invariance)
    queries, keys = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    d = (lambda q, k: info_nce(q, k, 0.2)) if invariance == "contrastive" else regression
    torch.testing.assert_close(parts.loss(queries, keys), d(queries[:, 0], keys[:, 0]) + d(queries[:, 1], keys[:, 1]))


def test_keys_have_no_gradient_and_nothing_has_a_state():
    parts = joint("contrastive")
    assert not parts.key(torch.randn(4, 16, requires_grad=True)).requires_grad
    assert parts.query(torch.randn(4, 16)).requires_grad
    assert not list(parts.buffers()), "a step that is skipped leaves nothing behind"


def test_chance_is_the_loss_of_whoever_knows_nothing():
    keys = torch.randn(50, 2, 8)
    same = torch.ones(50, 2, 8)
    assert joint("contrastive").chance(keys) == pytest.approx(4 * 0.2 * math.log(50))
    assert joint("contrastive").loss(same, same).item() == pytest.approx(4 * 0.2 * math.log(50), rel=1e-5)
    mean = torch.nn.functional.normalize(keys, dim=-1).mean(0).expand(50, -1, -1)
    byol = joint("regression")
    assert byol.chance(keys) == pytest.approx(byol.loss(mean, keys).item(), rel=1e-5)


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


OTHERS = {
    "objective.error": "smooth_l1",
    "objective.target_norm": "token",
    "masks.predict": "visible",
    "predictor.depth": 1,
    "predictor.width": 64,
    "predictor.conditioning": "none",
    "predictor.mlp_ratio": 2.0,
    "predictor.init": "trunc_normal",
}


def test_what_training_warns_of_changes_no_gradient(images):
    objective = Objective(kind="joint", target_norm="batch", projector_width=32, projector_dim=8)
    base = tiny(objective=objective, masks=Masks(sampler="none", predict="all"))

    def gradient(settings: Config) -> torch.Tensor:
        torch.manual_seed(0)
        model, rows = ImageWorldModel(settings), np.arange(len(images))
        views = make_views(images, model.space, settings.actions, 0, 0, rows, "cpu")
        model(views, sample_masks(settings.masks, model.grid, 0, 0, rows, "cpu")).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient(base)
    assert plain.any()
    assert set(OTHERS) == set(Joint.unread)
    for name, value in OTHERS.items():
        changed = fields.with_changes(Config, {name: value}, "pretrain", base)
        assert changed != base
        assert torch.equal(gradient(changed), plain), name
