"""How much of the machine a whole training step uses, and its peak memory.

    utilisation = needed FLOPs of a step / (seconds of a step x matrix peak)

Needed FLOPs are `iwm.model.cost.cost(settings).train_flops` an image, times the batch. With n tokens, width d, depth L
and MLP ratio r a transformer costs L (2 n d^2 (4 + 2 r) + 4 n^2 d) forward, twice that backward; a step is the teacher
forward on all patches, the student forward and backward on the context, the predictor forward and backward on context
and queries, plus patch embedding, projections and conditioning. Views, norms, softmax, AdamW and EMA count as nothing:
they are overhead. The matrix peak is the best of several products, among them the step's own shapes, in the same
precision and the same run, in turns with the steps. On a GPU ten steps are timed in a row, as in training, where the
host runs ahead. Peak memory is that of a fresh process, not compiled: on a CPU what it holds above its imports at the
highest point of two steps, on a GPU PyTorch's largest allocation.
"""

import multiprocessing
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.sizes import grid_of, settings_of
from benchmarks.timing import Options, Spread, seconds_of, show
from iwm.config import Config
from iwm.model.cost import cost
from iwm.model.masks import dropped_count, query_count
from iwm.runtime import devices
from iwm.runtime.errors import UserError

Shape = tuple[int, int, int]


def shapes(settings: Config, options: Options) -> list[Shape]:
    """Matrix products (m, k, n): squares, and the MLPs of encoder and predictor at the step's numbers of tokens."""
    sides = (
        (4096, 8192, 16384) if options.device.type == "cuda" else (512, 1024) if options.quick else (1024, 2048, 4096)
    )
    batch, width, narrow = settings.optim.batch_size, settings.encoder.width, settings.predictor.width
    patches = grid_of(settings)[0] ** 2
    context = patches - dropped_count(settings.masks, grid_of(settings))
    positions = patches if settings.masks.predict == "all" else patches - context
    both = context + query_count(settings.masks, positions)
    own = [(batch * context, width, 4 * width), (batch * patches, width, 4 * width), (batch * both, narrow, 4 * narrow)]
    return [(side, side, side) for side in sides] + own + [(m, n, k) for m, k, n in own]


def product(shape: Shape, precision: str, device: torch.device) -> Callable[[], torch.Tensor]:
    m, k, n = shape
    dtype = devices.dtype_of(precision)
    # As a Linear multiplies: the weight is stored transposed.
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    return lambda: torch.mm(a, b.T, out=out)


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for precision in options.precisions:
            settings = settings_of(size, precision, options)
            with devices.kept_memory():
                rows.append({"size": size, "precision": precision} | _utilisation(settings, precision, options))
            for name in () if options.compile else ("iwm", "plain twin"):
                rows[-1][f"peak_memory_mb_{name.split()[-1]}"] = peak_memory(name, size, precision, options)
    show("utilisation and memory", rows)
    return rows, []


def _utilisation(settings: Config, precision: str, options: Options) -> dict[str, Any]:
    step, batch = contenders.ours(settings), settings.optim.batch_size
    products = {shape: product(shape, precision, options.device) for shape in shapes(settings, options)}
    for run in (step.run, step.run, *products.values()):
        run()
    best, seconds, flops = dict.fromkeys(products, 0.0), [], batch * cost(settings).train_flops
    times = 10 if options.device.type == "cuda" else 1
    for _ in range(options.repeats):
        seconds.append(seconds_of(step.run, options.device, times))
        for shape, run in products.items():
            m, k, n = shape
            best[shape] = max(best[shape], 2 * m * k * n / seconds_of(run, options.device, times))
    peak = max(best.values())
    return {
        "batch": batch,
        "compiled": options.compile,
        "images_per_second": asdict(Spread.of([batch / s for s in seconds])),
        "gflops_per_image": cost(settings).train_flops / 1e9,
        "achieved_tflops": asdict(Spread.of([flops / s / 1e12 for s in seconds])),
        "matrix_peak_tflops": peak / 1e12,
        "peak_shape": " x ".join(map(str, max(best, key=lambda shape: best[shape]))),
        "utilisation": asdict(Spread.of([flops / s / peak for s in seconds])),
    }


def peak_memory(name: str, size: str, precision: str, options: Options) -> float:
    """Megabytes, measured in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, size, precision, options))


def _peak_memory(name: str, size: str, precision: str, options: Options) -> float:
    build = {"iwm": contenders.ours, "plain twin": contenders.twin}[name]
    settings = settings_of(size, precision, replace(options, compile=False))
    before = _resident("VmRSS")
    with devices.threads(settings.speed), devices.kept_memory():
        contender = build(settings)
        for _ in range(2):
            contender.run()
    if options.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return round(_resident("VmHWM") - before, 1)


def _resident(field: str) -> float:
    """A line of /proc/self/status in megabytes: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise UserError("Peak memory on a CPU is read from /proc, which this system has not; measure it on Linux.")
    match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    assert match
    return int(match[1]) * 1024 / 1e6
