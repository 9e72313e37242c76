import math
from typing import cast

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from iwm.model.vit import (
    AdaLNBlock,
    PlainBlock,
    checkpoint_blocks,
    choose_attention,
    depths,
    gather_tokens,
    head_count,
    initialise,
    patch_product,
    rescale_residuals,
    set_drop_path,
    sincos_positions,
)


def test_positions_follow_the_formula():
    positions = sincos_positions((3, 5), 16)
    assert positions.shape == (15, 16)
    row, column = 2, 4
    token = positions[row * 5 + column]
    for i in range(4):
        frequency = 10000.0 ** (-i / 4)
        assert token[i] == pytest.approx(math.sin(column * frequency), abs=1e-6)
        assert token[4 + i] == pytest.approx(math.cos(column * frequency), abs=1e-6)
        assert token[8 + i] == pytest.approx(math.sin(row * frequency), abs=1e-6)
        assert token[12 + i] == pytest.approx(math.cos(row * frequency), abs=1e-6)


def test_gather_picks_rows():
    tokens = torch.arange(24.0).view(2, 4, 3)
    picked = gather_tokens(tokens, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(picked, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))
    assert gather_tokens(tokens, None) is tokens


def test_patch_product_is_the_convolution_with_its_gradients():
    projection = nn.Conv2d(3, 8, 4, stride=4).double()
    assert projection.bias is not None
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for output in (projection(images).permute(0, 2, 3, 1), patch_product(images, projection)):
        gradients = torch.autograd.grad(output.square().sum(), [images, projection.weight, projection.bias])
        results.append((output, *gradients))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(("width", "heads"), [(384, 12), (128, 4), (36, 1), (100, 2)])
def test_heads_are_32_wide_where_possible(width, heads):
    assert head_count(width) == heads
    assert width % heads == 0


def test_xavier_keeps_the_signal_where_trunc_normal_loses_it():
    spread = {}
    for kind in ("xavier", "trunc_normal"):
        torch.manual_seed(0)
        layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
        initialise(layers, kind)
        spread[kind] = float(layers(torch.randn(1000, 64)).detach().std())
    assert 0.7 < spread["xavier"] < 1.4
    assert spread["trunc_normal"] < 0.02


def test_residual_projections_stay_rescaled():
    blocks = nn.ModuleList(Block(64, 2) for _ in range(4))
    initialise(blocks, "trunc_normal")
    rescale_residuals(blocks)
    for number, block in enumerate(blocks, start=1):
        for weight in (block.get_parameter("attn.proj.weight"), block.get_parameter("mlp.fc2.weight")):
            assert float(weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)


def test_closed_adaln_is_the_identity_and_open_is_a_plain_block():
    torch.manual_seed(0)
    block = AdaLNBlock(32, 2, 4.0, 8)
    x, condition = torch.randn(2, 5, 32), torch.randn(2, 8)
    block.close_gates()
    assert torch.equal(block(x, condition), x)
    block.open_gates()
    plain = Block(32, 2, 4.0, qkv_bias=True)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("modulation")})
    torch.testing.assert_close(block(x, condition), plain(x))


def test_both_attention_kernels_compute_the_same():
    torch.manual_seed(0)
    block = Block(32, 2, qkv_bias=True)
    x = torch.randn(3, 7, 32)
    choose_attention(block, torch.device("cpu"), "bf16")
    plain = block(x)
    choose_attention(block, torch.device("cpu"), "fp32")
    torch.testing.assert_close(block(x), plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # either kernel, both in float32
@pytest.mark.parametrize("adaln", [False, True])
def test_a_block_asked_for_its_first_tokens_gives_just_those(adaln, precision):
    torch.manual_seed(0)
    block = AdaLNBlock(32, 2, 4.0, 8) if adaln else PlainBlock(32, 2, 4.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    choose_attention(block, torch.device("cpu"), precision)
    x, more = torch.randn(3, 7, 32), [torch.randn(3, 8)] if adaln else []
    whole, few = block(x, *more)[:, :4], block(x, *more, count=4)
    torch.testing.assert_close(few, whole)
    weights = list(block.parameters())
    weight = torch.randn_like(whole)
    for one, other in zip(
        torch.autograd.grad((few * weight).sum(), weights),
        torch.autograd.grad((whole * weight).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "expected"), [(12, (4, 6, 8, 12)), (18, (6, 9, 12, 18)), (4, (2, 2, 3, 4)), (1, (1, 1, 1, 1))]
)
def test_depths_at_a_third_a_half_two_thirds_and_the_end(count, expected):
    assert depths(count) == expected


@pytest.mark.parametrize("adaln", [False, True])
def test_stochastic_depth_leaves_whole_branches_out_and_keeps_the_mean(adaln):
    torch.manual_seed(0)
    first, last = (AdaLNBlock(32, 2, 4.0, 8) if adaln else Block(32, 2) for _ in range(2))
    if adaln:
        for block in (first, last):
            cast(AdaLNBlock, block).open_gates()
    blocks = nn.ModuleList([first, last])
    set_drop_path(blocks, 0.5)
    assert [block.get_submodule("drop_path1").drop_prob for block in blocks] == [0.25, 0.5]
    x = torch.randn(1, 5, 32).expand(4000, -1, -1)
    more = (torch.randn(1, 8).expand(4000, -1),) if adaln else ()
    with torch.no_grad():
        whole = last.eval()(x[:1], *(part[:1] for part in more))
        last.train()
        last.drop_path2 = nn.Identity()
        last.mlp = nn.Identity()
        last.norm2 = nn.Identity()
        shown = last(x, *more)
        left_out = (shown == shown[0]).flatten(1).all(1)
    assert 0.45 < float(left_out.float().mean()) < 0.55
    assert len(shown.flatten(1).unique(dim=0)) == 2
    assert whole.shape == (1, 5, 32)


@pytest.mark.parametrize("kind", ["plain", "adaln"])
def test_blocks_computed_again_keep_only_their_inputs_and_give_the_same_gradients(kind):
    gradients, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        blocks = [PlainBlock(32, 2, 4.0) if kind == "plain" else AdaLNBlock(32, 2, 4.0, 5) for _ in range(2)]
        model = nn.Sequential(*blocks)
        if kind == "adaln":
            cast(AdaLNBlock, model[0]).open_gates()
        names = list(model.state_dict())
        if again:
            checkpoint_blocks(model)
        assert list(model.state_dict()) == names
        saved: list[int] = []

        def pack(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        x = torch.randn(2, 6, 32, requires_grad=True)
        others = () if kind == "plain" else (torch.randn(2, 5),)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = model[1](model[0](x, *others), *others, count=3)
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
        kept.append(sum(saved))
        with torch.no_grad():
            assert model[0](x, *others).shape == x.shape
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert kept[1] < kept[0] / 5
