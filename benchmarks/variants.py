"""Which form of a step is the quickest on this device: eager, compiled in several ways, captured as a CUDA graph, with
crops given or made of pictures that live on the device.

The variants stand in the order in which they decide most; the file is written after each of them, so a call that is
stopped has measured something. On a CPU what needs CUDA is named and left out, and with `--quick` compiled code is
PyTorch's "eager" backend: that tries the script, not the speed.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from benchmarks.captured import CapturedTraining
from benchmarks.sizes import batch_of, settings_of
from benchmarks.timing import Options, Spread, seconds_of, show, write
from iwm.config import Config
from iwm.data.loader import Batch
from iwm.data.resident import ResidentImages
from iwm.model.cost import cost
from iwm.model.vit import compile_blocks
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.training.step import Training

Prepare = Callable[[ImageWorldModel, dict[str, Any]], None]


def _blocks(model: ImageWorldModel, compiler: dict[str, Any]) -> None:
    compile_blocks(model, **compiler)


def _whole(model: ImageWorldModel, compiler: dict[str, Any]) -> None:
    """Teacher, student and predictor as three functions instead of some dozens."""
    compile_blocks(torch.nn.Module())  # its limit of recompilations
    for encoder in (model.encoder, model.target_encoder):
        encoder.tokens = torch.compile(encoder.tokens, dynamic=False, **compiler)
    model.predictor.forward = torch.compile(model.predictor.forward, dynamic=False, **compiler)


def _nothing(model: ImageWorldModel, compiler: dict[str, Any]) -> None:
    pass


VARIANTS: dict[str, tuple[Prepare, str | None, bool]] = {
    "eager": (_nothing, None, False),
    "blocks": (_blocks, None, False),
    "captured, blocks": (_blocks, None, True),
    "captured": (_nothing, None, True),
    "whole, reduce-overhead": (_whole, "reduce-overhead", False),
    "whole": (_whole, None, False),
    "blocks, max-autotune-no-cudagraphs": (_blocks, "max-autotune-no-cudagraphs", False),
}
"""What is done to the model, the compiler's mode, and whether the step is captured."""
PICTURES = 1024
"""Pictures that live on the device: a third longer than the crops and a quarter higher, of small sizes as large."""


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    cuda = options.device.type == "cuda"
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for name, (prepare, mode, captured) in VARIANTS.items():
        if not cuda and (captured or mode):
            missing.append(f"'{name}' needs CUDA.")
            continue
        for size in options.sizes:
            for precision in options.precisions:
                what = {"size": size, "precision": precision, "variant": name}
                settings = settings_of(size, precision, replace(options, compile=False))
                try:
                    rows += [what | row for row in _rows(settings, prepare, mode, captured, options)]
                except Exception as error:  # of one experiment of several, whose others still count
                    reason = str(error).strip().splitlines() or [""]
                    missing.append(f"'{name}' at {size} failed: {type(error).__name__}: {reason[0]}")
                gc.collect()
                write("variants", rows, missing, options)
    show("variants of a step", rows)
    return rows, missing


def _rows(
    settings: Config, prepare: Prepare, mode: str | None, captured: bool, options: Options
) -> list[dict[str, Any]]:
    torch.compiler.reset()
    compiler: dict[str, Any] = {"mode": mode} if mode else {}
    if options.quick and options.device.type == "cpu":
        compiler = {"backend": "eager"}
    settings = replace(settings, speed=replace(settings.speed, compile=False))
    kind = CapturedTraining if captured else Training
    start = time.perf_counter()
    training = kind.start(settings, 1000, Session.of(settings.speed), lambda model: prepare(model, compiler))
    rows = []
    for place, make in (("given", _given(settings, options)), ("resident", _resident(settings, options))):
        numbers = iter(range(1, 10**6))

        def step(make: Callable[[int], Batch] = make, numbers: Any = numbers) -> None:
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            training.step(make(next(numbers)))

        for _ in range(4):  # also of whole images, where the settings have such steps
            step()
        seconds_of(step, options.device)
        begun = time.perf_counter() - start
        times = 10 if options.device.type == "cuda" else 1
        seconds = [seconds_of(step, options.device, times) for _ in range(options.repeats)]
        count = settings.optim.batch_size
        rates = Spread.of([count / one for one in seconds])
        tflops = Spread.of([count * cost(settings).train_flops / one / 1e12 for one in seconds])
        row = {"crops": place, "images_per_second": asdict(rates), "tflops": asdict(tflops)}
        rows.append(row | {"begun_after_seconds": begun})
        console.print(f"{place}: {rates} images/s after {begun:.0f} s")
    return rows


def _given(settings: Config, options: Options) -> Callable[[int], Batch]:
    """The same crops in every step, on the device already."""
    batch = batch_of(settings, 1)
    batch = replace(batch, images=batch.images.to(options.device))
    return lambda step: replace(batch, step=step)


def _resident(settings: Config, options: Options) -> Callable[[int], Batch]:
    """Crops made of pictures that live on the device, in every step anew."""
    size, count, data = settings.data.image_size, settings.optim.batch_size, settings.data
    height, width = (size, size) if size <= 64 else (5 * size // 4, 4 * size // 3)
    generator = torch.Generator().manual_seed(0)
    number = 64 if options.quick else PICTURES
    shape = (number, 3, height, width)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    resident = ResidentImages(list(pictures), options.device)

    def make(step: int) -> Batch:
        indices = (np.arange(count) + step * count) % number
        crops = resident.crops(size, data.crop_area, data.flip, 0, step, indices)
        return Batch(step, indices, crops, None, 0.0)

    return make
