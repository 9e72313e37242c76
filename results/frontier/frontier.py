"""What an hour of one core buys: changes of a recipe, one at a time, each trained for the same time.

    python results/frontier/frontier.py pace cifar10 PART.npz   # how long a step of every arm takes
    python results/frontier/frontier.py run cifar10 PART.npz    # train and measure what is not done
    python results/frontier/figures.py                          # the picture

PART.npz is a part of the training images to learn from and another to measure on (results/small-data/part.py): the test
set stays unseen. Names of arms behind it choose some, SEED=1 in front another seed. The time of a step is in seconds of
the core, of all arms in turns in one process, crops included; an arm takes as many steps as fit into what the recipe's
STEPS take. Everything is resumed where it was stopped.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iwm import recipe_book
from iwm.config import Config
from iwm.data.image_sets import Subset
from iwm.data.loader import Loader
from iwm.data.sources import open_images
from iwm.run_folder import RunFolder
from iwm.runtime.devices import Session
from iwm.runtime.fields import with_changes
from iwm.training.step import Training

HERE = Path(__file__).parent
RUNS = Path("runs/frontier")
STEPS = {"cifar10": 2000, "eurosat": 1000, "ijepa-style-cifar10": 2000}
"""Steps of the recipe itself, each of 32 images."""
TURNS, STEPS_A_TURN = 7, 6

ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "wider": {"encoder.width": 256, "encoder.heads": 8},
    "deeper": {"encoder.depth": 6},
    "narrow-deep": {"encoder.width": 128, "encoder.heads": 4, "encoder.depth": 6},
    "half-mlp": {"encoder.mlp_ratio": 2.0},
    "patch-2x": {"encoder.patch_size": 8},
    "predictor-1x256": {"predictor.depth": 1},
    "predictor-2x128": {"predictor.width": 128},
    "predictor-4x256": {"predictor.depth": 4},
    "ask-less": {"masks.queries": 0.2},
    "ask-all": {"masks.queries": 1.0},
    "never-whole": {"masks.whole": 0.0},
    "see-half": {"masks.sampler": "random", "masks.ratio": 0.5},
    "see-quarter": {"masks.sampler": "random"},
    "see-eighth": {"masks.sampler": "random", "masks.ratio": 0.875},
    "batch-16": {"optim.batch_size": 16, "optim.lr_batch": 16},
    "batch-64": {"optim.batch_size": 64, "optim.lr_batch": 64},
    "crop-0.15": {"data.crop_area": (0.15, 1.0)},
    "crop-0.6": {"data.crop_area": (0.6, 1.0)},
    "ema-0.98": {"optim.ema": 0.98},
    "ema-0.998": {"optim.ema": 0.998},
    "ema-to-0.999": {"optim.ema_final": 0.999},
    "top-2-targets": {"objective.target_layers": 2},
    "constant": {"optim.schedule": "constant"},
    "two-sources": {"masks.sources": 2, "optim.batch_size": 16, "optim.lr_batch": 16},
    "growing": {"data.start_size": 16},
    "one-clean": {"actions.clean": "either"},
    "registers": {"encoder.registers": 4},
    "half-jittered": {"actions.jitter_probability": 0.5},
}
"""Each arm's difference from the recipe."""
AS_DEAR = ("data.crop", "actions.", "optim.ema", "optim.schedule", "objective.target_layers")
"""Changes that leave a step's time as it is: such an arm takes as many steps as the recipe, whatever the clock said."""


def base_of(recipe: str) -> Config:
    """What the arms change: the recipe with masks of blocks, as it was before it took what see-quarter says."""
    base = recipe_book.get(recipe)
    return replace(base, masks=replace(base.masks, sampler="exact"))


def settings_of(recipe: str, arm: str) -> Config:
    """The recipe with the arm's changes; what is twice or half is so of the recipe's own."""
    base, change = base_of(recipe), dict(ARMS[arm])
    if arm == "patch-2x":
        change["encoder.patch_size"] = 2 * base.encoder.patch_size
    if arm == "growing":
        change["data.start_size"] = base.data.image_size // 2
    return with_changes(Config, change, "frontier", base)


# ---- the time of a step --------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One arm that takes steps when it is asked to."""

    training: Training
    batches: Iterator[Any]
    seconds: list[float]

    def turn(self) -> None:
        since = time.process_time()
        for _ in range(STEPS_A_TURN):
            self.training.step(next(self.batches))
        self.seconds.append((time.process_time() - since) / STEPS_A_TURN)


def pace(recipe: str, source: str, *only: str) -> None:
    """Seconds of a core that a step takes, the arms (all of them, or some beside the recipe) in turns."""
    arms = [arm for arm in ARMS if not only or arm in ("recipe", *only)]
    images = open_images(source, "train")
    some = Subset(images, np.arange(1000))
    contenders: dict[str, Contender] = {}
    session_settings = replace(recipe_book.get(recipe).speed, threads=1, workers=0)
    with Session.open(session_settings) as session:
        for arm in arms:
            settings = settings_of(recipe, arm)
            if settings.data.start_size:  # the steps of that size alone; the others are the recipe's
                settings = replace(settings, data=replace(settings.data, start_share=1.0))
            loader = Loader(some, settings.data, settings.optim.batch_size, 0, session_settings)
            contenders[arm] = Contender(Training.start(settings, loader.steps_per_epoch, session), iter(loader), [])
        for turn in range(TURNS + 1):
            for arm, contender in contenders.items():
                contender.turn()
                print(turn, arm, f"{contender.seconds[-1]:.3f}", flush=True)
    base = contenders["recipe"].seconds[1:]
    path = HERE / f"pace-{recipe}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for arm, contender in contenders.items():
        ratios = [one / other for one, other in zip(contender.seconds[1:], base, strict=True)]
        rows[arm] = {
            "seconds_per_step": round(statistics.median(contender.seconds[1:]), 4),
            "over_recipe": round(statistics.median(ratios), 4),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    path.write_text(json.dumps(rows, indent=1) + "\n")


# ---- training and measuring ----------------------------------------------------------------------------------------


def iwm(*words: Any, kept: bool = False) -> bytes:
    """Run a command; with `kept` its standard output is returned."""
    output = subprocess.PIPE if kept else None
    return subprocess.run(["iwm", *map(str, words)], check=True, stdout=output).stdout


def options_of(recipe: str, arm: str) -> list[str]:
    """The arm's change on the command line."""
    was, words = base_of(recipe), []
    now = settings_of(recipe, arm)
    for name in ARMS[arm]:
        group, field = name.split(".")
        value = getattr(getattr(now, group), field)
        assert value != getattr(getattr(was, group), field), f"{arm} is the recipe"
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words if "masks.sampler" in ARMS[arm] else ["--masks.sampler", was.masks.sampler, *words]


def steps_of(recipe: str, arm: str) -> int:
    """How many steps the arm takes in the time of the recipe's."""
    paces = json.loads((HERE / f"pace-{recipe}.json").read_text())
    if all(name.startswith(AS_DEAR) for name in ARMS[arm]):
        return STEPS[recipe]
    data, ratio = settings_of(recipe, arm).data, paces[arm]["over_recipe"]
    if data.start_size:
        ratio = data.start_share * ratio + 1 - data.start_share
    return round(STEPS[recipe] / ratio)


def run(recipe: str, source: str, arms: list[str], seed: int = 0) -> None:
    """Train and measure the arms; what is there is not made again."""
    count, speed = len(open_images(source, "train")), ["--speed.threads", "1"]
    for arm in arms or ARMS:
        settings, steps = settings_of(recipe, arm), steps_of(recipe, arm)
        warmup = steps / 10 / (count // settings.optim.batch_size)
        at = RunFolder(RUNS / (f"{recipe}-{arm}" + f"-seed{seed}" * bool(seed)))
        length = ["--optim.steps", steps, "--optim.warmup-epochs", round(warmup, 4), "--seed", seed]
        logging = ["--log-every", max(1, steps // 8), "--probe-every", 4, "--save-every", 400]
        change = options_of(recipe, arm)
        iwm("pretrain", recipe, "--data.source", source, "--out", at.path, *length, *change, *logging, *speed)
        for name, words in {
            "world": ["world", at.path, "--data", source, "--images", 64],
            "probe": ["probe", at.path, "--data", source, "--layers", "all", "--no-baselines"],
        }.items():
            result = HERE / recipe / f"{at.path.name.removeprefix(recipe + '-')}-{name}.json"
            if not result.exists():
                result.parent.mkdir(exist_ok=True)
                result.write_bytes(iwm(*words, "--json", *speed, kept=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, *rest = sys.argv[1:]
    if verb == "pace":
        pace(*rest)
    elif verb == "run":
        run(rest[0], rest[1], rest[2:], int(os.environ.get("SEED", "0")))
