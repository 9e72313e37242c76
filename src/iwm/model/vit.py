"""What encoder and predictor share: sin-cos positions, token gathering, initialisation, conditioned blocks.

A block is timm's: x + Attention(LN(x)), then x + MLP(LN(x)).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iwm.runtime import sharing
from iwm.runtime.errors import UserError

Grid = tuple[int, int]
"""Height and width of a patch grid; tokens are in row-major order."""


def sincos_positions(grid: Grid, width: int) -> Float[Tensor, "n d"]:
    """Fixed 2-D sine-cosine position embedding (MAE appendix A; I-JEPA): half the channels for the column, half for
    the row, frequencies 10000^(-i / (d/4)).

    Raises ValueError unless `width` is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {width}")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1).double() * frequencies for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def patch_product(images: Float[Tensor, "b c h w"], projection: nn.Conv2d) -> Float[Tensor, "b r k d"]:
    """A convolution whose stride is its kernel, patches of p px, as a matrix product: [b, h / p, w / p, d]."""
    batch, channels, height, width = images.shape
    side = projection.kernel_size[0]
    patches = images.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return F.linear(patches.flatten(3), projection.weight.flatten(1), projection.bias)


def gather_tokens(tokens: Float[Tensor, "b n d"], indices: Int64[Tensor, "b k"] | None) -> Float[Tensor, "b k d"]:
    """tokens[b, indices[b]] for every b; None keeps all."""
    if indices is None:
        return tokens
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def without_affine(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """LayerNorm without affine."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def depths(count: int) -> tuple[int, int, int, int]:
    """Numbers of the blocks at 1/3, 1/2, 2/3 and the end of `count` blocks, rounded up."""
    return -(-count // 3), -(-count // 2), -(-2 * count // 3), count


def head_count(width: int, head_width: int = 32) -> int:
    """As many heads of `head_width` as fit, or the next smaller number that divides `width`."""
    return next(heads for heads in range(max(1, width // head_width), 0, -1) if width % heads == 0)


def initialise(module: nn.Module, kind: Literal["trunc_normal", "xavier"]) -> None:
    """Draw every Linear and patch convolution anew, biases zero, LayerNorms at one.

    trunc_normal: standard deviation 0.02, right for widths around 768; xavier: uniform Glorot, whose signal does not
    shrink at small widths.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.view(layer.weight.shape[0], -1)
            if kind == "xavier":
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.trunc_normal_(weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def rescale_residuals(blocks: nn.ModuleList | nn.Sequential) -> None:
    """Divide the two residual projections of block i (from 1) by sqrt(2 i), so the stream's variance stays even.

    Call it after `initialise`: the published I-JEPA code draws the weights again afterwards by mistake.
    """
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        for projection in (cast(Attention, block.attn).proj, cast(Mlp, block.mlp).fc2):
            projection.weight.div_(math.sqrt(2.0 * number))


def set_drop_path(blocks: Iterable[nn.Module], rate: float) -> None:
    """Stochastic depth in training: the branches of block i of n (from 1) are left out with probability
    rate i / n for a whole image (Huang et al. 2016). Raises UserError for blocks without it."""
    stack = list(blocks)
    for number, block in enumerate(stack, start=1):
        if not hasattr(block, "drop_path1"):
            raise UserError(f"Blocks of type {type(block).__name__} have no stochastic depth; leave out --drop-path.")
        block.drop_path1, block.drop_path2 = (StochasticDepth(rate * number / len(stack)) for _ in range(2))


class StochasticDepth(DropPath):
    """timm's, drawn for a whole batch, so that the ranks which share it leave out what one process would."""

    def forward(self, x: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
        if not self.drop_prob or not self.training:
            return x
        keep, shape = 1 - self.drop_prob, (1,) * (x.ndim - 1)
        kept = sharing.drawn_for_batch(lambda count: x.new_empty(count, *shape).bernoulli_(keep), len(x))
        return x * kept.div_(keep)


def attend(attention: Attention, x: Float[Tensor, "b n d"], count: int | None) -> Float[Tensor, "b q d"]:
    """attention(x) at the first `count` tokens (None: all): the others are looked at, but ask and say nothing."""
    if count is None:
        return attention(x)
    batch, _, width = x.shape
    weights, biases = (part.split((width, 2 * width)) for part in (attention.qkv.weight, attention.qkv.bias))
    shape = (batch, -1, attention.num_heads, attention.head_dim)
    query = F.linear(x[:, :count], weights[0], biases[0]).view(shape).transpose(1, 2)
    key, value = (part.view(shape).transpose(1, 2) for part in F.linear(x, weights[1], biases[1]).chunk(2, dim=-1))
    if attention.fused_attn:
        attended = F.scaled_dot_product_attention(query, key, value)
    else:
        attended = (query * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
    return attention.proj(attended.transpose(1, 2).reshape(batch, count, width))


class PlainBlock(Block):
    """timm's block, which can also give the first `count` tokens of its output alone."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio, qkv_bias=True)

    def forward(self, x: Float[Tensor, "b n d"], count: int | None = None) -> Float[Tensor, "b q d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x[:, :count] + self.drop_path1(attend(cast(Attention, self.attn), self.norm1(x), count))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class AdaLNBlock(Block):
    """A block whose LayerNorms are shifted and scaled, and whose branches are gated, by a condition vector
    (AdaLN-Zero, Peebles & Xie 2023). Starts as the identity: its modulation is zero."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, condition: int) -> None:
        super().__init__(dim, num_heads, mlp_ratio, qkv_bias=True)
        self.modulation = nn.Linear(condition, 6 * dim)

    def close_gates(self) -> None:
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def open_gates(self) -> None:
        """Gates at one: for a random predictor used as a control, which would be blind to its context otherwise."""
        self.close_gates()
        with torch.no_grad():
            gates = self.modulation.bias.view(6, -1)
            gates[2].fill_(1.0)
            gates[5].fill_(1.0)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b c"], count: int | None = None
    ) -> Float[Tensor, "b q d"]:
        """The first `count` tokens of the output (None: all)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        normed = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        x = x[:, :count] + self.drop_path1(gate1 * attend(cast(Attention, self.attn), normed, count))
        return x + self.drop_path2(gate2 * self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2)))


def choose_attention(module: nn.Module, device: torch.device, precision: str) -> None:
    """Take the quicker of timm's two attention kernels for this device; both compute the same function.

    On CPUs in bfloat16 a forward and backward pass through PyTorch's fused kernel was measured 2 to 6 times slower than
    plain batched matrix products at these lengths (16 to 196 tokens); everywhere else the fused kernel wins.
    """
    fused = not (device.type == "cpu" and precision == "bf16")
    for layer in module.modules():
        if isinstance(getattr(layer, "fused_attn", None), bool):
            layer.fused_attn = fused  # pyright: ignore[reportArgumentType]


def checkpoint_blocks(module: nn.Module) -> None:
    """Have every transformer block that is trained keep its input only, and compute the rest again for its gradients:
    a third more time for a fraction of the memory. Names and numbers stay."""
    for block in module.modules():
        if isinstance(block, Block):
            block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Tensor], x: Float[Tensor, "b n d"], *others: Any, **named: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, *others, **named)
    return cast(Tensor, checkpoint(forward, x, *others, use_reentrant=False, **named))


def compile_blocks(module: nn.Module, **options: Any) -> None:
    """Compile every transformer block in place: names and weights stay, and blocks of one shape share their code.

    `options` are those of `torch.compile`.
    """
    import torch._dynamo.config as limits  # here, for it takes a second

    # Teacher, student and predictor, in training and in the health checks: more shapes than the 8 allowed by default.
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in module.modules():
        if isinstance(block, Block):
            block.compile(dynamic=False, **options)
