"""The host's share of a training step: what a GPU waits for, whatever its speed. Milliseconds of processor time.

A step of ViT-S/16's 12 blocks and a predictor of 12, so narrow and of so few tokens that calling is nearly all the
work; for 256 images, masks on 14 x 14 patches, actions, and crops of pictures in memory, which a thread beside the
training makes (of 341 x 256 px at 224, of 32 px as large). With `--against FOLDER`, another checkout of this
repository, both are measured in turns and the ratio is reported. Every turn is a process of its own, on one thread;
processor time leaves out what other processes take.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Options, Spread, show
from iwm import config, recipe_book
from iwm.actions.action_space import ActionSpace
from iwm.config import Config, Speed
from iwm.data.crops import random_crops
from iwm.data.loader import Batch
from iwm.model.masks import sample_masks
from iwm.runtime import devices
from iwm.runtime.devices import Session
from iwm.training.step import Training

HERE = Path(__file__).parent.parent
TURN = "import json, sys; from benchmarks.host import turn; print(json.dumps(turn(sys.argv[1], int(sys.argv[2]))))"
IMAGES = np.arange(256)


def narrow(kind: str) -> Config:
    """As many blocks as ViT-S/16 has, 24 channels, 4 tokens, 8 images."""
    settings = recipe_book.imagenet(24, 12, 2, 12, 12)
    return replace(
        settings,
        data=replace(settings.data, image_size=32),
        optim=replace(settings.optim, batch_size=8, kind=kind),
    )


def turn(kind: str, repeats: int) -> dict[str, float]:
    """Milliseconds of processor time, the least of the repeats: of a step, of masks, of two views' parameters."""
    with devices.threads(Speed(threads=1)), devices.kept_memory():
        training = Training.start(narrow(kind), 1000, Session(torch.device("cpu"), "bf16"))
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        numbers = iter(range(10**6))
        space = ActionSpace.from_config(config.Actions(), 224)

        def step() -> None:
            training.step(Batch(next(numbers), np.arange(8), images, None, 0.0))

        def actions() -> None:
            source, target = (space.sample(0, 1, IMAGES, view) for view in ("source", "target"))
            space.difference(source, target)

        return {
            "step_ms": _least(step, repeats),
            "masks_ms": _least(lambda: sample_masks(config.Masks(), (14, 14), 0, 1, IMAGES, "cpu"), repeats),
            "actions_ms": _least(actions, repeats),
            "crops_224_ms": _least(_crops(256, 341, 224), 2, times=1),
            "crops_32_ms": _least(_crops(32, 32, 32), repeats),
        }


def _crops(height: int, width: int, size: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(IMAGES), height, width, 3)
    images = list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2))
    return lambda: random_crops(images, size, (0.3, 1.0), 0.5, 0, 1, IMAGES)


def _least(run: Callable[[], object], repeats: int, times: int = 5) -> float:
    run()
    run()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(times):
            run()
        taken.append((time.process_time() - start) / times)
    return 1e3 * min(taken)


def _measure(folder: Path, kind: str, repeats: int) -> dict[str, float]:
    """A turn with the package of a checkout, always with this benchmark."""
    paths = os.pathsep.join([str(folder / "src"), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", TURN, kind, str(repeats)]
    output = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    for kind in ("adamw", "muon"):
        folders = {"here": HERE} | ({"before": options.against} if options.against else {})
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
        for number in range(options.repeats):
            for name in list(folders)[:: -1 if number % 2 else 1]:
                turns[name].append(_measure(folders[name].resolve(), kind, 2 if options.quick else 8))
        for what in turns["here"][0]:
            ours = [each[what] for each in turns["here"]]
            row: dict[str, Any] = {"optimiser": kind, "what": what, "here": asdict(Spread.of(ours))}
            if options.against:
                theirs = [each[what] for each in turns["before"]]
                row["before"] = asdict(Spread.of(theirs))
                row["before_over_here"] = asdict(Spread.of([b / a for a, b in zip(ours, theirs, strict=True)]))
            rows.append(row)
    show("the host's milliseconds", rows)
    return rows, []
