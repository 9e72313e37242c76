"""Exported weights: `model.safetensors` and `config.json`, never pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import fields, files
from iwm.runtime.errors import UserError

TENSORS, CONFIG = "model.safetensors", "config.json"
"""The two files of a folder of weights."""

FORMAT = 1


def write_weights(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` (`meta` and the format's number) into `folder`, atomically."""
    with files.replacing(folder / TENSORS) as part:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
        files.write_text(folder / CONFIG, json.dumps({"format": FORMAT, **meta}, indent=1))


def export(model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write a model for use: its weights, settings and action space."""
    meta = {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), **extra}
    write_weights(folder, model.state_dict(), meta)


def are_in(folder: Path) -> bool:
    """Whether a folder holds exported weights."""
    return (folder / TENSORS).is_file() and (folder / CONFIG).is_file()


def read_model(folder: Path, device: str | torch.device = "cpu") -> ImageWorldModel:
    """The world model of a folder of weights, in eval mode. Raises UserError when they cannot be read."""
    try:
        meta = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / TENSORS)
        settings = fields.from_dict(config.Config, meta["settings"])
        model = ImageWorldModel(settings, ActionSpace.from_spec(meta["actions"]))
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights in {folder} cannot be read ({reason}); export them again.") from None
    return model.eval().requires_grad_(False).to(device)
