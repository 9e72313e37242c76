"""Several processes that do one piece of work: how they meet, add up, and end together.

The engine is `torch.distributed`: gloo on the CPU, NCCL on GPUs. Every function here is the identity where one process
works alone, so whoever calls it needs not ask. Sums and gathers carry gradients with this convention: a loss that every
rank computes from sums over all ranks is averaged over ranks by DDP and FSDP, which gives the gradient of one process.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch import distributed as dist

from iwm.runtime import rank_store, rank_watch
from iwm.runtime.console import console
from iwm.runtime.errors import Interrupted, UserError
from iwm.runtime.launch import Place, address_of, interface_to, place, reachable
from iwm.runtime.rank_watch import RankWatch

stores: Any = dist  # which exports them without saying so

PATIENCE = 1800.0
"""Seconds that a collective may take where nobody is found to hang."""


@dataclass
class _Group:
    """The ranks of this job, once they have met."""

    place: Place
    store: Any
    watch: RankWatch
    meetings: int = 0
    groups: int = 0
    complaints: int = 0
    sharing: bool = False
    """Whether this rank does its share of work after which all meet."""


_group: _Group | None = None
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def size() -> int:
    """How many ranks sums and gathers run over."""
    return 1 if _group is None or _alone.get() else _group.place.size


def rank() -> int:
    """The number of this process among them, from 0."""
    return 0 if _group is None or _alone.get() else _group.place.rank


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block every rank works for itself: sums and gathers are the identity, and nobody waits for another."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextlib.contextmanager
def share() -> Iterator[None]:
    """Inside the block this rank does its share of work after which all ranks meet. One that gives no `advance` in it
    while the others wait for it hangs."""
    here = _group
    if here is None or _alone.get() or here.sharing:
        yield
        return
    here.sharing = True
    advance()
    try:
        yield
    finally:
        advance()
        here.watch.rest()
        here.sharing = False


def advance() -> None:
    """A part of this rank's `share` is done, by whatever thread; see `RankWatch.advance`."""
    if _group is not None and _group.sharing:
        _group.watch.advance()


# ---- meeting and parting -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together(mend: str = "give the same command again.") -> Iterator[Place]:
    """The ranks of this job meet, and end together: an error on one of them ends all.

    Yields the place of this process; nothing happens where it is the only one. Only rank 0 writes to the console.
    `mend` is what to do when a rank was lost.
    Raises UserError when a rank does not come; SystemExit, without a word, where another rank has failed.
    """
    global _group
    where = place()
    if where.size == 1 or _group is not None:
        yield where
        return
    store = rank_store.open_store(where)
    watch = RankWatch(where, lambda: rank_store.connect(where), mend)
    _group = _Group(where, store, watch)
    quiet, console.quiet = console.quiet, where.rank > 0
    watch.start()
    try:
        yield where
    except Interrupted:  # of all ranks, after the same step
        _part(_group)
        raise
    except BaseException as error:
        _fail(_group, error)
        raise
    else:
        _part(_group)
    finally:
        watch.stop()
        console.quiet = quiet
        _group = None


@contextlib.contextmanager
def group(where: Place, device: torch.device) -> Iterator[None]:
    """The ranks' collectives for tensors on the device; inside `together`."""
    if _group is None or dist.is_initialized():  # a script of the user's own may have met before
        yield
        return
    cuda = device.type == "cuda"
    if not cuda:
        _choose_interface(where)
    _group.groups += 1
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=stores.PrefixStore(f"group/{_group.groups}", _group.store),
        rank=where.rank,
        world_size=where.size,
        timeout=timedelta(seconds=PATIENCE),
        device_id=device if cuda else None,
    )
    try:
        yield
    except Interrupted:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after a failure: it would wait for the others


def _choose_interface(where: Place) -> None:
    """Let gloo use the interface by which rank 0 is reached, where nobody has chosen another."""
    assert _group is not None
    own = address_of(where.address)
    keys = [f"address/{_group.groups}/{rank}" for rank in range(where.size)]
    _group.store.set(keys[where.rank], own)
    meet()
    address = reachable(own, [value.decode() for value in _group.store.multi_get(keys)])
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_to(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def meet() -> None:
    """Wait until all ranks have come here, however long one of them takes."""
    if _group is None or _alone.get():
        return
    _group.watch.rest()
    _group.watch.arrive()
    _group.meetings += 1
    key = f"meeting/{_group.meetings}"
    _group.store.add(key, 1)
    while _group.store.add(key, 0) < _group.place.size:
        time.sleep(0.02)


def _part(joined: _Group) -> None:
    """End the job well: nobody's watch may miss another, and rank 0, whose store it is, goes last."""
    meet()
    joined.watch.stop()
    joined.store.add("gone", 1)
    until = time.monotonic() + rank_watch.SILENCE
    while joined.place.rank == 0 and joined.store.add("gone", 0) < joined.place.size and time.monotonic() < until:
        time.sleep(0.02)


SOON = 8
"""Beats within which a watch has heard of a failure and ended its process."""
LOST = r"gloo|NCCL|nccl|Connection (closed|reset|refused)|Broken pipe|Socket|[Tt]imed out|TCPStore"
"""In what collectives say when a rank that they wait for is gone."""


def _fail(joined: _Group, error: BaseException) -> None:
    """Tell the others of an error. Raises UserError with this rank's name in front, SystemExit where another rank was
    the first to fail; returns where the error may go on as it is."""
    me = joined.place
    if isinstance(error, RuntimeError) and re.search(LOST, str(error)):
        # Somebody is gone. Who, the watch finds out, and then ends this process.
        time.sleep(rank_watch.SILENCE + 4 * rank_watch.BEAT)
    expected = isinstance(error, UserError | OSError | MemoryError)
    code = 130 if isinstance(error, KeyboardInterrupt) else 2 if expected else 1
    with contextlib.suppress(RuntimeError):  # rank 0, whose store it is, has gone: so it has heard of a failure
        if not rank_watch.post(joined.store, me.rank, f"{me.name}: {error}", code):
            time.sleep(SOON * rank_watch.BEAT)  # the watch hears of the other's failure, and ends this process
        rank_watch.wait_for(joined.store, me.size - 1)
        joined.store.add(rank_watch.HEARD, 1)
    if isinstance(error, UserError) and me.rank:
        name = me.name
        raise type(error)(f"{name[0].upper()}{name[1:]}: {error}") from None


def tick() -> None:
    """A training step has come to where all ranks come; see `RankWatch.tick`."""
    if _group is not None and not _alone.get():
        _group.watch.tick()


def rest() -> None:
    """What follows may take one rank longer than the others; see `RankWatch.rest`."""
    if _group is not None and not _alone.get():
        _group.watch.rest()


def of_first(number: int) -> int:
    """What rank 0 says; all ranks must ask, and wait for one another."""
    if _group is None or _alone.get():
        return number
    meet()
    key = f"first/{_group.meetings}"
    if _group.place.rank == 0:
        _group.store.set(key, str(number))
    return int(_group.store.get(key))


def all_complain(sentence: str) -> bool:
    """Whether every rank comes here with this sentence, at the same place of the work. Unlike collectives it may be
    asked by a rank that failed alone while the others wait for it elsewhere; it then waits for them in vain."""
    if _group is None or _alone.get():
        return True
    _group.watch.rest()
    _group.complaints += 1
    keys = [f"complaint/{_group.complaints}/{rank}" for rank in range(_group.place.size)]
    _group.store.set(keys[_group.place.rank], json.dumps([_group.meetings, sentence]))
    until = time.monotonic() + rank_watch.WAITING
    while not _group.store.check(keys):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return len(set(_group.store.multi_get(keys))) == 1


# ---- sums and gathers ----------------------------------------------------------------------------------------------


def _arrive() -> None:
    """All ranks come to a sum or a gather: before it, say so to those who look for one that hangs."""
    if _group is not None:
        _group.watch.arrive()


def sum_in_place(tensor: Shaped[Tensor, "*s"]) -> Shaped[Tensor, "*s"]:
    """The tensor, now the sum over ranks, without gradients."""
    if size() > 1:
        _arrive()
        dist.all_reduce(tensor)
    return tensor


class _Sum(torch.autograd.Function):
    """Sum over ranks; the gradient of every rank's loss by what it gave is summed likewise."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_in_place(tensor.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_in_place(gradients[0].clone(memory_format=torch.contiguous_format))


class _Gather(torch.autograd.Function):
    """Rows of all ranks, below one another; a row's gradient is the sum of what every rank says of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.start, ctx.end = rank() * len(tensor), (rank() + 1) * len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size())]
        _arrive()
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_in_place(gradients[0].clone(memory_format=torch.contiguous_format))[ctx.start : ctx.end]


def all_reduce_sum(tensor: Shaped[Tensor, "*s"]) -> Shaped[Tensor, "*s"]:
    """The sum over ranks, with gradients."""
    return tensor if size() == 1 else _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


def all_reduce_mean(tensor: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The mean over ranks, with gradients; of rows that are equally many on every rank, that of all rows."""
    return all_reduce_sum(tensor) / size() if size() > 1 else tensor


def all_gather(tensor: Shaped[Tensor, "b *s"]) -> Shaped[Tensor, "r *s"]:
    """The rows of all ranks, equally many on each, in the order of ranks, with gradients."""
    return tensor if size() == 1 else _Gather.apply(tensor)  # pyright: ignore[reportReturnType]


def smallest(number: int) -> int:
    """The smallest of the ranks' numbers."""
    if size() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor(number, device=device)
    _arrive()
    dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def rows_of(count: int, parts: int = 1) -> list[range]:
    """This rank's rows of each of `parts` equal micro-batches of a batch of `count`, which every rank shares evenly."""
    each = count // parts
    mine = each // size()
    return [range(part * each + rank() * mine, part * each + (rank() + 1) * mine) for part in range(parts)]


def shared_rows(count: int, work: Callable[[list[int]], Float[Tensor, "n d"]]) -> Float[Tensor, "m d"]:
    """`work` of rows 0 to `count`, every rank's share done by itself, the results gathered in order, without gradients.

    Every rank calls `work` with equally many rows. Those beyond `count` are the first ones once more; they are left out
    of the result.
    """
    each = -(-count // size())
    with share():
        results = work([row % count for row in range(rank() * each, (rank() + 1) * each)])
    return all_gather(results.detach())[:count]
