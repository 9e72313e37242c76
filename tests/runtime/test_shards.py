"""Sharded tensors are put together, measured and sharded again as whole ones are."""

import ranks
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from iwm.runtime import distributed, shards


def tensors(count: int = 5) -> list[Tensor]:
    """More than there are ranks, of which the rows do not go evenly into them."""
    return list(torch.arange(count * 7 * 2, dtype=torch.float64).view(count, 7, 2).sin())


def on_a_rank() -> None:
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        mesh, plain = init_device_mesh("cpu", (where.size,)), tensors()
        pieces = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in plain]
        assert torch.equal(shards.whole(pieces[1]), plain[1])
        assert shards.local(pieces[1]).shape[0] < 7
        torch.testing.assert_close(shards.squared_norm(pieces), torch.stack(plain).square().sum())
        turned = shards.on_whole(pieces, lambda whole: whole / whole.norm())
        for piece, tensor in zip(turned, plain, strict=True):
            torch.testing.assert_close(shards.whole(piece), tensor / tensor.norm())
        again = shards.shard_like(pieces[0], plain[2])
        assert torch.equal(shards.local(again), shards.local(pieces[2]))
        gathered = shards.gathered({"sharded": pieces[3], "plain": plain[4]})
        assert list(gathered) == (["sharded", "plain"] if where.rank == 0 else [])
        if gathered:
            assert torch.equal(gathered["sharded"], plain[3])


def test_three_ranks(tmp_path):
    three = ranks.start(3, tmp_path, on_a_rank)
    assert three.wait() == [0, 0, 0], three.texts


def test_what_is_not_sharded_stays_as_it_is():
    [tensor] = tensors(1)
    assert shards.whole(tensor) is tensor
    assert shards.local(tensor) is tensor
    assert shards.shard_like(tensor, tensor) is tensor
    assert shards.gathered({"plain": tensor}) == {"plain": tensor}
