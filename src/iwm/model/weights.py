"""Exported weights: `model.safetensors` and `config.json`, never pickled."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from iwm import config
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import files

FORMAT = 1


def write_weights(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` (`meta` and the format's number) into `folder`, atomically."""
    with files.replacing(folder / "model.safetensors") as part:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
        files.write_text(folder / "config.json", json.dumps({"format": FORMAT, **meta}, indent=1))


def export(model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write a model for use: its weights, settings and action space."""
    meta = {"settings": config.to_dict(model.settings), "actions": model.space.spec(), **extra}
    write_weights(folder, model.state_dict(), meta)
