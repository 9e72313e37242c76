from dataclasses import replace

import pytest
import torch
from conftest import tiny

from iwm.config import Optim
from iwm.model import ImageWorldModel
from iwm.optim import Schedule, adamw


def test_the_papers_values_at_the_last_step():
    schedule = Schedule(Optim(), steps_per_epoch=600)
    last = schedule.steps - 1
    assert schedule.lr(last) == pytest.approx(1.195e-4, rel=2e-3)
    assert schedule.weight_decay(last) == pytest.approx(0.366, abs=5e-4)
    assert schedule.ema(last) == pytest.approx(0.9992, abs=1e-5)


def test_warm_up_and_peak():
    schedule = Schedule(Optim(), steps_per_epoch=10)
    assert schedule.lr(0) == pytest.approx(2e-4)
    assert schedule.lr(200) == pytest.approx((2e-4 + 1e-3) / 2)
    assert schedule.lr(400) == pytest.approx(1e-3)
    assert max(schedule.lr(step) for step in range(schedule.steps)) == pytest.approx(1e-3)


def test_the_learning_rate_scales_with_the_batch():
    small, large = Schedule(Optim(batch_size=512), 10), Schedule(Optim(batch_size=2048), 10)
    assert small.lr(500) == pytest.approx(large.lr(500) / 4)


@pytest.mark.parametrize("conditioning", ["adaln", "sequence", "feature"])
def test_only_weight_matrices_decay(conditioning):
    model = ImageWorldModel(tiny(predictor=replace(tiny().predictor, conditioning=conditioning)))
    decays, spared = adamw(model, tiny().optim).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(p.ndim > 1 for p in decays["params"])
    assert not any(
        names[id(p)].endswith("bias") for p in decays["params"]
    )  # sequence's biases are stacked, still biases
    assert {id(p) for p in spared["params"]} >= {id(p) for p in model.parameters() if p.requires_grad and p.ndim <= 1}
    assert spared["weight_decay"] == 0
    trained = {id(p) for group in (decays, spared) for p in group["params"]}
    assert id(model.encoder.pos_embed) not in trained
    assert not trained & {id(p) for p in model.target_encoder.parameters()}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_weight_decay_is_applied_by_the_fused_kernel():
    weight = torch.nn.Linear(4, 4, bias=False)
    optimiser = adamw(weight, Optim())
    optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["weight_decay"] = 0.1, 0.5
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.zeros_like(weight.weight)
    optimiser.step()
    torch.testing.assert_close(weight.weight.detach(), before * (1 - 0.1 * 0.5))
