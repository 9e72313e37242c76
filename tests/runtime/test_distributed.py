"""Sums and gathers over ranks, and their gradients, are those of one process that has all rows."""

import os
import time

import pytest
import ranks
import torch
from torch import Tensor

from iwm.model.objectives.joint import info_nce
from iwm.model.objectives.projector import BatchNorm
from iwm.model.objectives.spread import variance_covariance
from iwm.runtime import distributed, launch, rank_watch

RANKS, ROWS = 2, 6


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Rows [n, e] in float64, weights [e, e], and other rows."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (4, 4), (6, 4)))  # pyright: ignore[reportReturnType]


def gathered(outputs: Tensor, others: Tensor) -> Tensor:
    """A loss of every pair of rows: each rank says that of its own with all."""
    return (outputs @ distributed.all_gather(outputs).T).square().mean()


def summed(outputs: Tensor, others: Tensor) -> Tensor:
    """A loss of the mean over all rows."""
    return distributed.all_reduce_mean(outputs.mean(dim=0)).exp().sum()


def normed(outputs: Tensor, others: Tensor) -> Tensor:
    return (BatchNorm(4, affine=False, track_running_stats=False)(outputs) * others).float().square().mean()


def contrasted(outputs: Tensor, others: Tensor) -> Tensor:
    return info_nce(outputs, others, 0.2)


def spread(outputs: Tensor, others: Tensor) -> Tensor:
    positions = torch.tensor([[0], [1], [1], [2], [0], [1]])[distributed.rank() * 3 :][: len(outputs)]
    variance, covariance = variance_covariance(outputs.unsqueeze(1), positions, 3)
    return variance + covariance


LOSSES = {work.__name__: work for work in (gathered, summed, normed, contrasted, spread)}


def losses() -> dict[str, tuple[Tensor, Tensor]]:
    """Every loss and its gradient by the weights, averaged over ranks as DDP and FSDP do."""
    rows, start, others = data()
    mine = distributed.rows_of(ROWS)[0]
    results = {}
    for name, work in LOSSES.items():
        weights = start.clone().requires_grad_()
        loss = work(rows[mine] @ weights, others[mine])
        loss.backward()
        assert weights.grad is not None
        results[name] = tuple(distributed.all_reduce_mean(part.detach().double()) for part in (loss, weights.grad))
    return results


def on_a_rank(folder: str) -> None:
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        assert (distributed.size(), distributed.rank()) == (RANKS, where.rank)
        assert distributed.smallest(5 + where.rank) == 5
        assert distributed.of_first(7 + where.rank) == 7
        own = distributed.shared_rows(5, lambda rows: torch.tensor(rows).double()[:, None])
        assert own.flatten().tolist() == [0, 1, 2, 3, 4]
        with distributed.alone():
            assert distributed.size() == 1
            assert distributed.all_gather(torch.ones(2)).shape == (2,)
        if where.rank:
            losses()
        else:
            torch.save(losses(), f"{folder}/losses.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    both = ranks.start(RANKS, folder, on_a_rank, str(folder))
    assert both.wait() == [0, 0], both.texts
    return torch.load(folder / "losses.pt", weights_only=True)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_one_process(of_two, name):
    for mine, one in zip(of_two[name], losses()[name], strict=True):
        torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_gather_is_more_than_that_of_the_local_part(of_two):
    rows, start, _ = data()
    weights = start.clone().requires_grad_()
    outputs = rows @ weights
    (outputs @ outputs.detach().T).square().mean().backward()
    assert weights.grad is not None
    assert not torch.allclose(of_two["gathered"][1], weights.grad, rtol=1e-2)


def test_rows_of_a_rank_are_its_part_of_every_micro_batch():
    assert distributed.rows_of(8, 2) == [range(4), range(4, 8)]


def busy_alone(name: str) -> None:
    """Rank 0 trains something of its own, for longer than a rank may keep the others waiting."""
    rank_watch.WAITING = 0.5
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        if where.rank == 0:
            with distributed.alone():
                assert distributed.of_first(3) == 3
                distributed.meet()
                for _ in range(30):
                    distributed.tick()
                    time.sleep(0.05)
        distributed.tick()
        assert float(distributed.all_reduce_sum(torch.ones(()))) == RANKS


def test_steps_of_one_rank_alone_are_none_that_others_keep_it_waiting_for(tmp_path):
    both = ranks.start(RANKS, tmp_path, busy_alone, "")
    assert both.wait(30) == [0, 0], both.texts


def on_srun(name: str) -> int:
    """As srun starts it: its variables in place of torchrun's."""
    rank = os.environ.pop("RANK")
    for other in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[other]
    os.environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        assert where.launcher == launch.SRUN
        return int(distributed.all_reduce_sum(torch.ones(()))) + 10


def test_srun_meets_too(tmp_path):
    both = ranks.start(2, tmp_path, on_srun, "")
    assert both.wait() == [12, 12], both.texts
