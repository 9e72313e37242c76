"""What moves the weights: AdamW, or Muon for the matrices of attention and MLPs. One class for each, by its name."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from iwm.config import Optim
from iwm.runtime import shards
from iwm.runtime.errors import UserError
from iwm.runtime.registry import Registry


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024), for the weight matrices of hidden layers.

        m <- momentum m + (1 - momentum) g;   u = orthogonal((1 - momentum) g + momentum m)   (Nesterov's look ahead)
        W <- (1 - lr weight_decay) W - .2 sqrt(max(rows, columns)) lr u

    The scale aims at the root mean square of AdamW's updates, .2 lr, so that rates and decay carry over (Liu et al.
    2025). This is `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, except that it multiplies in `dtype`
    (PyTorch's always in bfloat16, some thirty times slower where that is emulated), takes matrices of one shape at once
    on a GPU, and like the fused AdamW leaves everything untouched where `found_inf` is 1.
    """

    def __init__(self, matrices: list[nn.Parameter], dtype: torch.dtype, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "decays": True})
        self.dtype = dtype
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for weights in alike.values():
                if isinstance(weights[0], DTensor):
                    self.update_shards(weights, group)
                    continue
                at_once = len(weights) if weights[0].is_cuda else 1  # batched products are the slower ones on a CPU
                for first in range(0, len(weights), at_once):
                    self.update(weights[first : first + at_once], group)

    @torch.no_grad()
    def update(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move matrices of one shape, all at once."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients = torch.stack([weight.grad for weight in weights if weight.grad is not None])
        before, old = torch.stack(list(weights)), torch.stack(buffers)
        new = old.lerp(gradients, 1 - group["momentum"])
        towards = orthogonal(gradients.lerp(new, group["momentum"]).to(self.dtype))
        after = before * (1 - group["lr"] * group["weight_decay"])
        after.sub_(towards, alpha=group["lr"] * 0.2 * math.sqrt(max(towards.shape[-2:])))
        if self.found_inf is not None:
            skipped = self.found_inf.bool()
            after, new = torch.where(skipped, before, after), torch.where(skipped, old, new)
        torch._foreach_copy_([*weights, *buffers], [*after, *new])  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def update_shards(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move matrices of one shape that are sharded over ranks: each is orthogonalised as a whole, on one rank."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        old = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        new = [buffer.lerp(gradient, 1 - group["momentum"]) for buffer, gradient in zip(old, gradients, strict=True)]
        ahead = [gradient.lerp(one, group["momentum"]) for gradient, one in zip(gradients, new, strict=True)]
        towards = shards.on_whole(ahead, lambda matrix: orthogonal(matrix[None].to(self.dtype))[0])
        rate = group["lr"] * 0.2 * math.sqrt(max(weights[0].shape))
        skipped = None if self.found_inf is None else self.found_inf.bool()
        for weight, buffer, moved, step in zip(weights, old, new, towards, strict=True):
            here, kept = shards.local(weight), shards.local(buffer)
            after = here * (1 - group["lr"] * group["weight_decay"])
            after.sub_(shards.local(step), alpha=rate)
            later = shards.local(moved)
            here.copy_(after if skipped is None else torch.where(skipped, here, after))
            kept.copy_(later if skipped is None else torch.where(skipped, kept, later))


def orthogonal(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """Nearly U V^T of each matrix U S V^T: five quintic Newton-Schulz steps (Jordan et al. 2024), in the precision of
    what is given. Singular values above about 1/500 of the Frobenius norm come to lie between .7 and 1.2, smaller ones
    grow up to 480-fold."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).squeeze(0)  # one matrix as such: a CPU multiplies it faster than a stack
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    multiply_add = torch.baddbmm if x.ndim == 3 else torch.addmm
    for _ in range(5):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).view_as(matrices)


Named = Sequence[tuple[str, nn.Parameter]]
"""Trainable parameters with their names in the model."""


class Optimiser:
    """How the trainable parameters are moved; AdamW by itself. Your own inherits and overrides `make`.

    Every step sets `lr` and `weight_decay` of each group by the schedule (weight_decay only where the group says
    `decays: True`), and `found_inf` of each optimiser: where that tensor is 1, the step was not finite and must leave
    weights and state untouched, as PyTorch's `fused=True` optimisers do. All state must be tensors, for checkpoints.
    `iwm.register_optimiser(CLASS)` lets `optim.kind` name it.
    """

    name: ClassVar[str] = ""
    """What `optim.kind` says."""

    def __init__(self, settings: Optim, dtype: torch.dtype) -> None:
        self.settings, self.dtype = settings, dtype

    def make(self, parameters: Named) -> list[torch.optim.Optimizer]:
        """The optimisers that together move all of these, each parameter by one of them. `dtype` is the precision in
        which they may multiply. Raises UserError when that cannot be."""
        return [torch.optim.AdamW(decay_groups(parameters), lr=0.0, betas=self.settings.betas, fused=True)]


class AdamWAlone(Optimiser):
    """AdamW for all parameters (Loshchilov and Hutter 2019)."""

    name = "adamw"


class MuonForBlocks(Optimiser):
    """Muon for the matrices of attention and MLPs (Jordan et al. 2024), AdamW for the rest."""

    name = "muon"

    def make(self, parameters: Named) -> list[torch.optim.Optimizer]:
        hidden = [p for name, p in parameters if _is_hidden(name, p)]
        if not hidden:
            raise UserError("optim.kind muon finds no attention or MLP to train here; give optim.kind adamw.")
        rest = [(name, p) for name, p in parameters if not _is_hidden(name, p)]
        return [Muon(hidden, self.dtype), *super().make(rest)]


OPTIMISERS = Registry(Optimiser, "optim.kind", "register_optimiser", AdamWAlone, MuonForBlocks)
"""Every optimiser by its name."""
register_optimiser = OPTIMISERS.register


def make_optimisers(model: nn.Module, settings: Optim, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """What trains the trainable parameters, by `settings.kind`; `dtype` is the precision in which Muon multiplies.

    Raises UserError when no optimiser has that name, or when there is nothing for it to move.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return OPTIMISERS.find(settings.kind)(settings, dtype).make(trainable)


def decay_groups(parameters: Named) -> list[dict[str, Any]]:
    """Two groups: what weight decay shrinks, and what it does not, biases (stacked ones too) and other 1-D ones."""
    rest = [(p.ndim > 1 and not name.endswith("bias"), p) for name, p in parameters]
    return [
        {"params": [p for decays, p in rest if decays], "decays": True},
        {"params": [p for decays, p in rest if not decays], "decays": False, "weight_decay": 0.0},
    ]


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """A weight matrix of a transformer block's attention or MLP; neither embeddings nor the conditioning's."""
    return parameter.ndim == 2 and (".attn." in name or ".mlp." in name)
