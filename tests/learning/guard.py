"""The regression guard of `make test-learning`: a fifth of the demo, measured, against ranges stored from five seeds.

    python tests/learning/guard.py        # measures the five seeds anew and writes ranges.json, about 15 minutes

A range is the mean of the five seeds plus and minus three of their standard deviations.
"""

import json
import statistics
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from iwm import config, recipe_book, run_folder
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.evaluation.world import mrr
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime import devices
from iwm.training import loop, step
from iwm.training.online_probe import OnlineProbe

RANGES = Path(__file__).with_name("ranges.json")
SEEDS = range(5)
IMAGES, BANK = 32, 256


def settings(out: Path, seed: int, **optim: float) -> config.Config:
    """The demo's recipe for two of its ten epochs: 21,000 views."""
    demo = recipe_book.get("demo")
    return replace(
        demo,
        optim=replace(demo.optim, epochs=2, **optim),
        run=config.Run(out=str(out), seed=seed, log_every=300, save_every=5000),
    )


def measure(run: Path) -> dict[str, float]:
    """What was learned: the world model on held-out objects, the health of the representation, and a ridge probe's
    gain over the encoder as it was drawn."""
    model = run_folder.load_model(str(run))
    size = model.settings.data.image_size
    pixels, _ = load_all(Subset(open_images("sample-objects", "val"), np.arange(IMAGES)), size)
    world = mrr.measure(model, pixels, BANK)
    last = RunFolder(run).metric_lines()[-1]
    probe = OnlineProbe.for_run(open_images("sample-objects", "train"), model.settings)
    assert probe is not None
    untrained: ImageWorldModel = step.build(model.settings, torch.device("cpu")).eval()
    return {
        "mrr": world["mrr"],
        "mrr_shuffled": world["mrr_shuffled"],
        "explained": 1 - last["health_loss"] / last["position_mean_loss"],
        "rankme": last["rankme"],
        "action_sensitivity": last["action_sensitivity"],
        "probe_gain": probe.accuracy(model) - probe.accuracy(untrained),
    }


def outside(measures: dict[str, float], ranges: dict[str, tuple[float, float]]) -> list[str]:
    """What lies outside its range, in words."""
    return [
        f"{name} is {measures[name]:.3f}, expected {low:.3f} to {high:.3f}"
        for name, (low, high) in ranges.items()
        if not low <= measures[name] <= high
    ]


def stored() -> dict[str, tuple[float, float]]:
    return {name: tuple(row["range"]) for name, row in json.loads(RANGES.read_text())["measures"].items()}


def record() -> None:
    """Measure every seed and write the ranges."""
    rows = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(loop.pretrain(settings(Path(folder) / "run", seed))))
        print(seed, rows[-1], flush=True)
    measures = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        measures[name] = {"range": [mean - 3 * spread, mean + 3 * spread], "seeds": values}
    written = {
        "command": "python tests/learning/guard.py",
        "hardware": devices.describe(),
        "date": date.today().isoformat(),
        "measures": measures,
    }
    RANGES.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    record()
