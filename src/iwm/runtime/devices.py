"""What this process runs on: cores, memory, device, precision, threads, and their description for results."""

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from iwm.runtime import distributed, launch
from iwm.runtime.errors import UserError


@runtime_checkable
class Speed(Protocol):
    """The settings that this module reads (`iwm.config.Speed` has them)."""

    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...


def cores() -> int:
    """Processor cores this process may use: its affinity, capped by a container's quota; its share among ranks."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            count = min(count, max(1, int(limit) // int(period)))
    return max(1, count // _sharers())


def _sharers() -> int:
    """Ranks that share this machine's cores and memory: torchrun's do, srun binds each to its own."""
    where = launch.place()
    return where.local_size if where.launcher == launch.TORCHRUN else 1


def free_memory() -> int:
    """Bytes this process may still take: what the machine has left, or what its control group does."""
    free = [4 * 2**30]  # where nothing is known
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        free = [int(match[1]) * 1024] if match else free
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    limit, current, stat = group / "memory.max", group / "memory.current", group / "memory.stat"
    if limit.exists() and current.exists() and limit.read_text().strip() != "max":
        # Cached file pages count as used but are given back when asked for.
        cached = re.search(r"^inactive_file (\d+)", stat.read_text() if stat.exists() else "", re.MULTILINE)
        free.append(int(limit.read_text()) - int(current.read_text()) + (int(cached[1]) if cached else 0))
    return min(free) // launch.place().local_size


def require_memory(needed: int, what: str, mend: str) -> None:
    """Raises UserError when so many bytes are more than is free; `what` takes them, as in "100 images at 32 px"."""
    free = free_memory()
    if needed > free:
        raise UserError(f"{what} take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free; {mend}.")


def device_of(speed: Speed) -> torch.device:
    """The device asked for; auto takes CUDA, then the CPU; each rank of a machine takes its own GPU.

    Raises UserError when it is not there.
    """
    where = launch.place()
    if where.size > 1 and (speed.device == "cuda" or (speed.device == "auto" and torch.cuda.is_available())):
        return _own_gpu(where)
    if speed.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if where.size > 1 and speed.device != "cpu":
        raise UserError(f"Every rank takes its own GPU; give --speed.device cuda, not {speed.device}.")
    if speed.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("There is no mps device here; choose --speed.device cpu or auto.")
    kind, _, number = speed.device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind == "cuda" and not count:
        raise UserError(f"There is no {speed.device} device here; choose --speed.device cpu or auto.")
    if number and int(number) >= count:
        raise UserError(
            f"There is no {speed.device} here, the last one is cuda:{count - 1}; choose another --speed.device."
        )
    return torch.device(speed.device)


def _own_gpu(where: launch.Place) -> torch.device:
    """The GPU of this rank: by its number on this machine, or the only one where the launcher shows no other."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 1:
        return torch.device("cuda", 0)
    if where.local_rank >= count:
        raise UserError(
            f"There are {count} GPUs for {where.local_size} ranks on this machine; start as many ranks as it has GPUs, "
            "or give --speed.device cpu."
        )
    return torch.device("cuda", where.local_rank)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16 matrices."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    if device.type != "cpu" or not info.is_file():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def precision_of(speed: Speed, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision actually used."""
    wish = speed.precision if speed.precision != "auto" else "bf16" if multiplies_bf16(device) else "fp32"
    return "bf16" if wish == "bf16" else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """What matrices are multiplied in at that precision."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. It goes to a GPU by way of pinned memory, so that the host need not wait for what the
    GPU still has to do; from ordinary memory it would, whatever `non_blocking` says."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


@contextlib.contextmanager
def threads(speed: Speed) -> Iterator[int]:
    """Use speed.threads CPU threads (0: all cores; OMP_NUM_THREADS is respected) inside the block.

    fp32 means fp32 in it: cuDNN's convolutions would multiply with TF32's 10 bits by default.
    """
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # a list names the nesting levels
    count = speed.threads or (int(environment) if environment.isdigit() and int(environment) else cores())
    torch.set_num_threads(count)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Keep freed memory for the next step inside the block; yields whether the C library can (glibc).

    By default large tensors go back to the system when freed, and a training step on the CPU touches all its pages
    anew: 16,800 page faults a step for the recipe cifar10, none here, at the same peak memory.
    """
    with _allocator(mmap_threshold=32 * 2**20, trim_threshold=2**31 - 1) as can:
        yield can


@contextlib.contextmanager
def returned_memory() -> Iterator[bool]:
    """Give large tensors back to the system as soon as they are freed, inside the block; yields whether the C library
    can (glibc).

    By default glibc keeps what was freed once, and a process that serves for days grows by what lies scattered in it.
    """
    with _allocator(mmap_threshold=2**20, trim_threshold=2**20) as can:
        yield can


@contextlib.contextmanager
def _allocator(mmap_threshold: int, trim_threshold: int) -> Iterator[bool]:
    """malloc's thresholds, in bytes, inside the block; afterwards the defaults. Yields whether there are such."""
    trim, mmap, default = -1, -3, 128 * 2**10  # of malloc.h
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield False
        return
    assert library is not None
    library.mallopt(mmap, mmap_threshold)
    library.mallopt(trim, trim_threshold)
    try:
        yield True
    finally:
        library.mallopt(mmap, default)
        library.mallopt(trim, default)
        library.malloc_trim(0)


def processor_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, str | int]:
    """The machine, for results: processor, cores, GPU, versions of Python and the libraries that compute."""
    import timm
    import torchvision

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": processor_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }


@dataclass(frozen=True)
class Session:
    """What a piece of work runs on: device, precision and ranks, asked once and handed down."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    rank: int = 0
    """The number of this process among those that do the work together."""
    ranks: int = 1
    """How many these are."""

    @classmethod
    def of(cls, speed: Speed) -> "Session":
        """Ask the settings. Raises UserError when the device is not there."""
        device = device_of(speed)
        return cls(device, precision_of(speed, device), distributed.rank(), distributed.size())

    @classmethod
    @contextlib.contextmanager
    def open(cls, speed: Speed) -> Iterator["Session"]:
        """The session, with the threads that the settings ask for in use until the block ends.

        Where several processes were started they meet first, and an error on one of them ends all (`distributed`).
        """
        with distributed.together() as where:
            session = cls.of(speed)
            numbered = session.device.type == "cuda" and session.device.index is not None
            current = torch.cuda.device(session.device) if numbered else contextlib.nullcontext()
            with threads(speed), current, distributed.group(where, session.device):
                yield session

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 autocast, or nothing for fp32."""
        return autocast(self.device, self.precision)

    def upload(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, see `upload`."""
        return upload(tensor, self.device)


CPU = Session(torch.device("cpu"), "fp32")
"""Plain arithmetic on the host."""
