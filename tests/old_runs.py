"""What `tests/fixtures` holds and how it is looked at: shared by the script that made it and the test that reads it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"
ACTIONS = {
    "photometric": {"brightness": 0.3, "hue": -0.05, "grayscale": 1.0},
    "camera": {"gamma": 0.3, "jpeg": 20.0},
}
"""What a predictor is asked, by the run's set of transformations."""


def images() -> torch.Tensor:
    """Four validation images, uint8 [4, 3, 16, 16]."""
    with np.load(FIXTURES / "pictures.npz") as arrays:
        return torch.from_numpy(arrays["val_images"][:4]).permute(0, 3, 1, 2).contiguous()


def told(tensor: torch.Tensor) -> dict[str, Any]:
    """A few numbers of a tensor: its shape, its mean size, and eight values evenly spread."""
    values = tensor.detach().double().flatten()
    chosen = torch.linspace(0, len(values) - 1, 8).round().long()
    return {
        "shape": list(tensor.shape),
        "mean_size": float(values.abs().mean()),
        "values": [round(value, 8) for value in values[chosen].tolist()],
    }


@torch.no_grad()
def tokens(world: Any) -> dict[str, Any]:
    """What a world model says of the images, by what it was asked."""
    found = {"encode": told(world.encode(images()).values)}
    found["encode_student"] = told(world.encode(images(), student=True).values)
    if world.settings.objective.kind != "joint":
        seen = world.encode(images())
        asked = world.action(**ACTIONS[world.settings.actions.set])
        found["target"] = told(world.target(images()).values)
        found["predict_null"] = told(world.predict(seen, world.action()).values)
        found["predict"] = told(world.predict(seen, asked).values)
    return found


def fingerprint(settings: dict[str, Any]) -> str:
    """A result's mark, as it has been written from the beginning."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def with_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The same nested value with every text changed."""
    if isinstance(value, dict):
        return {key: with_paths(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_paths(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def marked_anew(path: Path, change: Callable[[str], str]) -> None:
    """Change the paths in a JSON file; a result's fingerprint is made to fit."""
    before = json.loads(path.read_text())
    content = with_paths(before, change)
    if "fingerprint" in before:
        assert before["fingerprint"] == fingerprint(before["settings"]), path
        content["fingerprint"] = fingerprint(content["settings"])
    path.write_text(json.dumps(content, indent=1) + "\n")
