from dataclasses import replace

import pytest
import torch
from conftest import tiny

from iwm.config import Optim
from iwm.model import ImageWorldModel
from iwm.optim import Muon, Schedule, optimisers, orthogonal


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
    [adamw] = optimisers(model, tiny().optim)
    decays, spared = adamw.param_groups
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
    [optimiser] = optimisers(weight, Optim())
    optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["weight_decay"] = 0.1, 0.5
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.zeros_like(weight.weight)
    optimiser.step()
    torch.testing.assert_close(weight.weight.detach(), before * (1 - 0.1 * 0.5))


def test_muon_moves_the_matrices_of_attention_and_mlps_alone():
    model = ImageWorldModel(tiny(optim=replace(tiny().optim, kind="muon")))
    muon, adamw = optimisers(model, model.settings.optim)
    names = {p: name for name, p in model.named_parameters()}
    moved = [names[p] for group in muon.param_groups for p in group["params"]]
    rest = [names[p] for group in adamw.param_groups for p in group["params"]]
    assert all(name.endswith((".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")) for name in moved)
    assert {name.split(".blocks.")[0] for name in moved} == {"encoder", "predictor"}
    assert not [name for name in rest if ".attn." in name or ".mlp." in name if not name.endswith("bias")]
    assert sorted(moved + rest) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_muon_is_pytorchs():
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 8), (8, 32), (24, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, 0.95, torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0].update(lr=0.02, weight_decay=0.1)
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape)
            other.grad = own.grad.clone()
        muon.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=0)  # four updates of 0.008 to 0.02 in bfloat16


def test_orthogonal_matrices_keep_their_directions():
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 7)
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25
    along = u.mT @ orthogonal(matrices).double() @ v.mT  # diagonal: the same singular vectors
    off = along - torch.diag_embed(torch.diagonal(along, dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-4


def test_muon_leaves_everything_untouched_where_a_step_is_not_finite():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    muon = Muon([weight], 0.95, torch.float32)
    muon.param_groups[0]["lr"] = 0.1
    weight.grad = torch.randn(6, 4)
    muon.step()
    before, momentum = weight.detach().clone(), muon.state[weight]["momentum_buffer"].clone()
    assert momentum.abs().max() > 0
    weight.grad = torch.full((6, 4), float("nan"))
    muon.found_inf = torch.ones(())
    muon.step()
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(muon.state[weight]["momentum_buffer"], momentum, rtol=0, atol=0)
