"""Tensors that FSDP2 has sharded over ranks: put together, looked at in part, sharded again."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from iwm.runtime import distributed


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP has sharded, on every rank; others as they are. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP has sharded, sharing its memory; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of these on rank 0, shards put together on its host one after the other; nothing on other ranks. All ranks
    must call it."""
    if distributed.size() == 1:
        return dict(tensors)
    wholes: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if distributed.rank() == 0:
            wholes[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return wholes


def shard_like(tensor: Tensor, value: Tensor) -> Tensor:
    """The value, which every rank has, sharded as the tensor is; as it is where that is not."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def squared_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The sum of all squares, over all shards where tensors are sharded."""
    total = torch.stack([local(tensor).square().sum() for tensor in tensors]).sum()
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        dist.all_reduce(total)
    return total


def on_whole(tensors: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`work`, which keeps the shape, of sharded tensors of one shape, each as a whole on one rank; sharded again."""
    results: list[Tensor] = []
    ranks, own = dist.get_world_size(), dist.get_rank()
    for first in range(0, len(tensors), ranks):
        some = tensors[first : first + ranks]
        mine = torch.zeros(some[0].shape, dtype=some[0].dtype, device=local(some[0]).device)
        for number, tensor in enumerate(some):
            full = whole(tensor)
            if number == own:
                mine = work(full).to(full.dtype).contiguous()
        parts = [torch.empty_like(mine) for _ in range(ranks)]
        dist.all_gather(parts, mine)
        results += [shard_like(tensor, part) for tensor, part in zip(some, parts, strict=False)]
    return results
