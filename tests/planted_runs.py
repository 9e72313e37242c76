"""Run folders with planted metrics and results, for the tests of verdict, compare and report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwm import config
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Evaluation, Outcome
from iwm.model import weights
from iwm.run_folder import RunFolder
from iwm.runtime.devices import CPU


def metrics(**values: Any) -> str:
    line = {"step": 100, "epoch": 1.0, "loss": 0.4, "health_loss": 0.4, "position_mean_loss": 0.9, "identity_loss": 0.5}
    line |= {"rankme": 30.0, "target_variance": 0.5, "action_sensitivity": 0.7, "images_per_second": 300.0}
    return json.dumps(line | {"precision": "bf16"} | values) + "\n"


def plant(run: Path, **values: Any) -> str:
    """A run folder without results."""
    run.mkdir(parents=True)
    folder = RunFolder(run)
    config.save(config.Config(run=config.Run(out=str(run))), folder.config)
    folder.metrics.write_text(metrics(**values))
    return str(run)


def save(
    run: str, verb: str, data: str, payload: Mapping[str, Any], settings: Mapping[str, Any], variant: str = ""
) -> Path:
    """A result without pictures or weights, where the verb would write it; returns the file."""
    work = Evaluation(verb, run, "", CPU)
    outcome = Outcome(data=data, payload=payload, settings=settings, variant=(variant,))
    path = work.place(outcome)
    ritual.write(path, payload, work.settings(outcome))
    return path


WORLD = {"mrr": 0.42, "mrr_standard_error": 0.01, "mrr_chance": 0.024, "mrr_shuffled": 0.025, "mrr_null": 0.024}
PROBE = {"kind": "linear", "top1": 0.46, "random_encoder_top1": 0.28, "raw_pixels_top1": 0.33, "n_val": 2000}
SEGMENT = {"file": "segment-head-linear-rooms", "data": "rooms", "train": "head", "head": "linear", "miou": 0.4}
SEGMENT |= {"majority_miou": 0.1, "miou_standard_error": 0.02}


def hold(run: str, mark: str) -> None:
    """Let a run hold weights of this hash."""
    folder = RunFolder(Path(run)).model
    folder.mkdir(exist_ok=True)
    (folder / weights.TENSORS).touch()
    (folder / weights.CONFIG).write_text(json.dumps({"sha256": mark}))


def tune(run: str, predictor: str, top1: float, seed: int = 0, **more: Any) -> None:
    payload = {"data": "objects", "train": "predictor", "predictor": predictor, "top1": top1, "n_val": 2000, **more}
    settings = {"predictor": predictor, "seed": seed, "epochs": 20}
    words = f"predictor-{predictor}" + (f"-seed{seed}" if seed else "")
    save(run, "finetune", "objects", payload, settings, variant=words)
