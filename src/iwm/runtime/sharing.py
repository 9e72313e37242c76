"""Work shared by rows: every rank takes its share of the images, and all of them get everything back in order.

    rows of rank r of R   n r / R <= i < n (r + 1) / R      contiguous, as even as can be, none repeated

Of a batch each rank takes its rows, and gradients are summed: where a rank's loss is its rows' part of the batch's,
the sum of all losses and gradients is that of one process. Everything here is the identity for one process, and inside
`distributed.alone()`, in which whatever is shared is done by each rank: shared work inside shared work is its own.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch import distributed as dist

from iwm.runtime import distributed, rank_watch
from iwm.runtime.errors import UserError

T = TypeVar("T")
AT_ONCE = 2**26
"""Bytes that go to the other ranks in one piece."""


def share_of(count: int) -> range:
    """This rank's rows among `count`."""
    ranks, rank = distributed.size(), distributed.rank()
    return range(count * rank // ranks, count * (rank + 1) // ranks)


# ---- gathered ------------------------------------------------------------------------------------------------------


def objects_of_all(value: T) -> list[T]:
    """What every rank says, in the order of ranks; all must ask. They wait for one another without limit."""
    if distributed.size() == 1:
        return [value]
    distributed.meet()
    values: list[Any] = [None] * distributed.size()
    dist.all_gather_object(values, value)
    return values


def all_say(agreed: bool) -> bool:
    """Whether every rank says so: what each decides by its own free memory, they must do alike."""
    return all(objects_of_all(agreed))


def gathered(part: Tensor | None) -> Tensor | None:
    """The rows of all ranks below one another, however many each has, without gradient; None: it has none."""
    return gathered_each({} if part is None else {"": part}).get("")


def gathered_each(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`gathered` for several tensors at once; a rank without rows gives none of them."""
    if distributed.size() == 1:
        return dict(part)
    facts = objects_of_all(
        {name: (len(rows), tuple(rows.shape[1:]), rows.dtype, rows.device.type) for name, rows in part.items()}
    )
    whole: dict[str, Tensor] = {}
    for name in next((list(fact) for fact in facts if fact), []):
        counts = [fact[name][0] if fact else 0 for fact in facts]
        _, shape, dtype, kind = next(fact[name] for fact in facts if fact)
        device = part[name].device if part else torch.device(kind)  # without a number: this rank's own
        whole[name] = torch.empty(sum(counts), *shape, dtype=dtype, device=device)
        for rank, rows in enumerate(whole[name].split(counts)):
            if part and rank == distributed.rank():
                rows.copy_(part[name].detach())
            _broadcast(rows, rank)
    return whole


def _broadcast(rows: Tensor, source: int) -> None:
    """Overwrite the rows by those of the source; NCCL carries them by way of the GPU."""
    if not rows.numel():
        return
    through_gpu = dist.get_backend() == "nccl" and rows.device.type == "cpu"
    for piece in rows.view(-1).view(torch.uint8).split(AT_ONCE):
        carried = piece.cuda() if through_gpu else piece
        dist.broadcast(carried, source)
        if through_gpu:
            piece.copy_(carried)


def by_first(work: Callable[[], T]) -> T:
    """What rank 0 gets by working, on all ranks; they wait for it without limit. The UserError that it raises all
    raise."""
    if distributed.size() == 1:
        return work()
    values: list[Any] = [None, None]
    if distributed.rank() == 0:
        distributed.rest()
        try:
            with distributed.alone():
                values[0] = work()
        except UserError as error:
            values[1] = error
    distributed.meet()
    dist.broadcast_object_list(values, 0)
    if values[1] is not None:
        if distributed.rank():
            time.sleep(rank_watch.BEAT)  # it is rank 0's to say
        raise values[1]
    return values[0]


def each_by_rows(work: Callable[..., Mapping[str, Tensor]], *values: Any) -> dict[str, Tensor]:
    """`work(*values)`, tensors with a row for each row of the values, of which every rank does its share."""
    if distributed.size() == 1:
        return dict(work(*values))
    rows = share_of(len(values[0]))
    part: Mapping[str, Tensor] = {}
    if len(rows):
        with distributed.share(), distributed.alone():
            part = work(*(value[rows.start : rows.stop] for value in values))
    return gathered_each(part)


def by_rows(work: Callable[..., Tensor], *values: Any) -> Tensor:
    """`each_by_rows` of a single tensor."""
    return each_by_rows(lambda *mine: {"": work(*mine)}, *values)[""]


# ---- batches -------------------------------------------------------------------------------------------------------

_batch: ContextVar[tuple[int, Int64[np.ndarray, " m"]] | None] = ContextVar("batch", default=None)


def rows_of_batch(count: int, mirrored: bool = False) -> Int64[np.ndarray, " m"]:
    """This rank's rows of a batch of `count`. `mirrored`: with row i also row count - 1 - i, so that a batch which is
    mixed with itself in reverse order is mixed within each rank.

    Raises UserError when there are more ranks than rows (or pairs).
    """
    pairs = (count + 1) // 2 if mirrored else count
    if pairs < distributed.size():
        raise UserError(
            f"A batch of {count} cannot be shared by {distributed.size()} ranks; raise --batch-size, or start fewer."
        )
    mine = np.arange(count)[share_of(pairs).start : share_of(pairs).stop]
    if not mirrored:
        return mine
    others = count - 1 - mine[::-1]
    return np.concatenate([mine, others[others >= pairs]])


@contextlib.contextmanager
def part_of_batch(count: int, rows: Int64[np.ndarray, " m"]) -> Iterator[None]:
    """Inside the block what is computed are these rows of a batch of `count`."""
    token = _batch.set((count, rows))
    try:
        yield
    finally:
        _batch.reset(token)


def drawn_for_batch(draw: Callable[[int], T], count: int) -> T:
    """`draw` of the batch that these `count` rows belong to, and of that their rows: what is drawn for a whole batch in
    order is the same on any number of ranks."""
    batch = _batch.get()
    if batch is None or len(batch[1]) != count:
        return draw(count)
    values: Any = draw(batch[0])
    return values[torch.from_numpy(batch[1])] if len(batch[1]) < batch[0] else values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the parameters' gradients over ranks, all in one message."""
    if distributed.size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = distributed.sum_in_place(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm by the statistics of the batch over all ranks, of which each may have another number of rows."""

    def forward(self, input: Tensor) -> Tensor:
        if distributed.size() == 1 or not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        cells = distributed.all_reduce_sum(values.new_tensor(values.numel() / values.shape[1]))
        mean = distributed.all_reduce_sum(values.sum(dim=(0, 2, 3))) / cells
        values = values - mean[:, None, None]
        variance = distributed.all_reduce_sum(values.square().sum(dim=(0, 2, 3))) / cells
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * cells / (cells - 1).clamp_min(1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        values = values * (variance + self.eps).rsqrt()[:, None, None]
        return (values * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def over_ranks(module: nn.Module) -> None:
    """Let every BatchNorm of images inside the module count all ranks' rows; names and weights stay."""
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                own = BatchNorm2d(child.num_features, child.eps, child.momentum)
                own.load_state_dict(child.state_dict())
                setattr(parent, name, own)
