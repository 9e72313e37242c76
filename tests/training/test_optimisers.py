from dataclasses import replace

import pytest
import torch
from conftest import DEVICES, tiny, trained_on

import iwm
from iwm.config import Optim
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.training import checkpoint, loop
from iwm.training.optimisers import OPTIMISERS, Muon, Named, decay_groups, make_optimisers, orthogonal


@pytest.mark.parametrize("conditioning", ["adaln", "sequence", "feature"])
def test_only_weight_matrices_decay(conditioning):
    model = ImageWorldModel(tiny(predictor=replace(tiny().predictor, conditioning=conditioning)))
    [adamw] = make_optimisers(model, tiny().optim, torch.float32)
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
    [optimiser] = make_optimisers(weight, Optim(), torch.float32)
    optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["weight_decay"] = 0.1, 0.5
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.zeros_like(weight.weight)
    optimiser.step()
    torch.testing.assert_close(weight.weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("conditioning", ["adaln", "sequence", "feature"])
def test_muon_moves_the_matrices_of_attention_and_mlps_alone(conditioning):
    model = ImageWorldModel(tiny(predictor=replace(tiny().predictor, conditioning=conditioning)))
    muon, adamw = make_optimisers(model, replace(tiny().optim, kind="muon"), torch.float32)
    names = {p: name for name, p in model.named_parameters()}
    moved = [names[p] for group in muon.param_groups for p in group["params"]]
    rest = [names[p] for group in adamw.param_groups for p in group["params"]]
    layers = [
        f"{part}.blocks.{block}.{layer}.weight"
        for part, blocks in (("encoder", 2), ("predictor", 2))
        for block in range(blocks)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert sorted(moved) == sorted(layers)
    assert sorted(moved + rest) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_muon_with_nothing_to_move_is_named():
    with pytest.raises(UserError, match=r"give optim\.kind adamw"):
        make_optimisers(torch.nn.Linear(4, 4), Optim(kind="muon"), torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_muon_is_pytorchs(device):
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 8), (8, 32), (24, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0].update(lr=0.02, weight_decay=0.1)
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        muon.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=0)  # entries move by .004 a step


def test_matrices_taken_at_once_move_as_one_by_one():
    torch.manual_seed(0)
    alone = [torch.nn.Parameter(torch.randn(12, 20)) for _ in range(3)]
    together = [torch.nn.Parameter(p.detach().clone()) for p in alone]
    one, all_at_once = Muon(alone, torch.float32), Muon(together, torch.float32)
    for muon in (one, all_at_once):
        muon.param_groups[0].update(lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for first, second in zip(alone, together, strict=True):
            first.grad = torch.randn(12, 20)
            second.grad = first.grad.clone()
        one.step()
        all_at_once.update(together, all_at_once.param_groups[0])
    for first, second in zip(alone, together, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (12, 12)])
def test_orthogonal_matrices_keep_their_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    made = orthogonal(matrices).double()
    along = u.mT @ made @ v.mT  # diagonal: the same singular vectors
    values = torch.diagonal(along, dim1=-2, dim2=-1)
    assert float((along - torch.diag_embed(values)).abs().max()) < 1e-4
    large = s / s.norm(dim=-1, keepdim=True) > 1 / 500
    assert float(values[large].min()) > 0.65
    assert float(values.max()) < 1.25


def test_orthogonal_bears_matrices_of_low_rank_and_none():
    thin = orthogonal(torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 6.0))[None])
    assert float(torch.linalg.matrix_norm(thin, ord=2)) == pytest.approx(0.95, abs=0.3)
    assert torch.equal(orthogonal(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_muon_leaves_everything_untouched_where_a_step_is_not_finite():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    muon = Muon([weight], torch.float32)
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


class Momentum(iwm.Optimiser):
    """Gradient descent with momentum."""

    name = "momentum"

    def make(self, parameters: Named) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(decay_groups(parameters), lr=0.0, momentum=0.9, fused=True)]


def test_one_of_your_own_trains_and_resumes(tmp_path, pictures, monkeypatch):
    settings = trained_on(
        tiny(optim=replace(tiny().optim, kind="momentum")), source=pictures, out=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match=r"optim\.kind is 'momentum'.*iwm\.register_optimiser"):
        loop.pretrain(settings)
    monkeypatch.setitem(OPTIMISERS, "momentum", Momentum)  # so that it is gone again after the test
    assert iwm.register_optimiser(Momentum) is Momentum
    run = loop.pretrain(settings)
    saved, _ = checkpoint.newest(RunFolder(run).checkpoints)
    assert saved is not None
    assert [name for name in saved.tensors if name.startswith("optimiser.momentum_buffer.encoder.blocks.0.")]
    assert loop.pretrain(replace(settings, optim=replace(settings.optim, epochs=3))) == run
