"""How a model is trained by several ranks: DDP, every rank with all of it, or FSDP2, every rank with a shard.

Both average the gradients over ranks. With FSDP2 (`fully_shard`) every block of student, teacher and predictor is
gathered when it computes and given up again; teacher and student are sharded alike, so the EMA moves each rank's own
shard. Parameters stay float32 and autocast computes as in one process.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from timm.models.vision_transformer import Block
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from iwm.model.encoder import PatchEncoder
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.devices import Session

METHODS = ("tokens", "tokens_and_last", "calibrate", "query", "key")
"""What training calls of modules beside their `forward`, and computes with their parameters; none calls another. Of
encoders also `intermediates`, which in a predictor is a part of its `forward`."""


def shard(model: ImageWorldModel, session: Session) -> None:
    """Shard all parameters over the ranks, in place; names stay. Optimisers are made afterwards."""
    mesh = init_device_mesh(session.device.type, (session.ranks,))
    for module in list(model.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    for part in [*model.children(), model]:
        if part is model or any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
        own = ("intermediates",) if isinstance(part, PatchEncoder) else ()
        for method in (*METHODS, *own):
            if hasattr(part, method):
                register_fsdp_forward_method(part, method)


def replicated(model: ImageWorldModel, session: Session) -> nn.Module:
    """The model with gradients averaged over ranks; the buckets of one are summed while the next are computed."""
    # The target statistics are the same on every rank: nothing is to be sent. PyTorch 2.14 renamed the option.
    names = inspect.signature(DistributedDataParallel).parameters
    own: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    devices = [session.device] if session.device.type == "cuda" else None
    encoder = model.settings.encoder
    # Models of others may hold a head's norm or pooling, which tokens do not pass through.
    own["find_unused_parameters"] = bool(encoder.name) and encoder.train == "all"
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **own)


@contextlib.contextmanager
def averaging(module: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of the block are averaged over ranks in the `last` micro-batch only, summed locally before."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield
