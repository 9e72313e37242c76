"""Work shared by rows comes back whole and in order; batches, draws and batch norm are those of one process."""

import numpy as np
import pytest
import ranks
import torch
from torch import Tensor, nn

from iwm.model.vit import StochasticDepth
from iwm.runtime import distributed, sharing
from iwm.runtime.errors import UserError

RANKS, COUNT = 3, 8


def rows(count: int = COUNT) -> Tensor:
    return torch.arange(count * 4, dtype=torch.float64).view(count, 4).sin()


def squared(values: Tensor) -> dict[str, Tensor]:
    assert distributed.size() == 1, "shared work inside shared work is one rank's"
    return {"half": values.square().half(), "whole": sharing.by_rows(lambda mine: mine + 1, values)}


def normed() -> dict[str, Tensor]:
    """A small network's outputs, gradients and statistics for a batch of 8 pictures, of which ranks have 2 or 3."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Tanh(), StochasticDepth(0.5)).double()
    sharing.over_ranks(network)
    network.double()
    pictures = torch.randn(COUNT, 2, 3, 5, dtype=torch.float64)
    weights = torch.randn(COUNT, 3, 3, 5, dtype=torch.float64)
    mine = sharing.rows_of_batch(COUNT)
    with sharing.part_of_batch(COUNT, mine):
        outputs = network(pictures[torch.from_numpy(mine)])
    (outputs * weights[torch.from_numpy(mine)]).sum().backward()
    sharing.sum_gradients(network.parameters())
    parts = {f"gradient {name}": value.grad for name, value in network.named_parameters() if value.grad is not None}
    whole = sharing.gathered(outputs.detach())
    assert whole is not None
    return {**parts, "outputs": whole, **network.state_dict()}


def refused() -> None:
    raise UserError("The folder of rank 0 cannot be written.")


def on_a_rank(folder: str) -> None:
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        shared = sharing.each_by_rows(squared, rows())
        assert torch.equal(shared["half"], rows().square().half())
        assert torch.equal(shared["whole"], rows() + 1)
        assert sharing.by_rows(lambda mine: mine > 0, rows(2)).shape == (2, 4), "fewer rows than ranks"
        assert sharing.gathered(None) is None
        assert sharing.objects_of_all(where.rank) == [0, 1, 2]
        assert sharing.by_first(lambda: (where.rank, distributed.size())) == (0, 1)
        with pytest.raises(UserError, match="of rank 0"):
            sharing.by_first(refused)
        assert distributed.all_complain("so")
        assert not distributed.all_complain(f"rank {where.rank}")
        assert sharing.all_say(True)
        assert not sharing.all_say(where.rank != 1)
        numbers = normed()
        if where.rank == 0:
            torch.save(numbers, f"{folder}/numbers.pt")
        for count, mirrored in ((7, False), (6, True), (9, True)):
            mine = sharing.rows_of_batch(count, mirrored)
            assert sorted(np.concatenate(sharing.objects_of_all(mine))) == list(range(count))
            if mirrored:
                assert np.array_equal(count - 1 - mine[::-1], mine), "mixed in reverse order within the rank"
        with pytest.raises(UserError, match="A batch of 4 cannot be shared by 3 ranks"):
            sharing.rows_of_batch(4, mirrored=True)


def test_what_three_ranks_share_is_what_one_process_does(tmp_path):
    three = ranks.start(RANKS, tmp_path, on_a_rank, str(tmp_path))
    assert three.wait() == [0, 0, 0], three.texts
    one, shared = normed(), torch.load(tmp_path / "numbers.pt", weights_only=True)
    assert one.keys() == shared.keys()
    for name, value in one.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-12, atol=1e-12)


def test_a_rank_without_rows_gets_them_on_the_device_that_the_others_have(monkeypatch):
    """The meta device stands for a GPU; nothing is sent."""

    def of_both(own: dict[str, tuple[object, ...]]) -> list[dict[str, tuple[object, ...]]]:
        others.update(own or others)
        return [others, {}]

    others: dict[str, tuple[object, ...]] = {}
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(sharing, "objects_of_all", of_both)
    monkeypatch.setattr(sharing, "_broadcast", lambda rows, source: None)
    sharing.gathered_each({"": torch.empty(2, 3, device="meta")})
    assert sharing.gathered_each({})[""].device.type == "meta"


def test_batch_norm_of_one_process_is_that_of_torch():
    network = nn.Sequential(nn.BatchNorm2d(3))
    sharing.over_ranks(network)
    pictures = torch.randn(4, 3, 5, 5)
    assert torch.equal(network(pictures), nn.BatchNorm2d(3)(pictures))


def test_one_process_has_all_rows():
    assert sharing.share_of(5) == range(5)
    assert sharing.rows_of_batch(4, mirrored=True).tolist() == [0, 1, 2, 3]
    assert sharing.drawn_for_batch(torch.ones, 3).tolist() == [1, 1, 1]
