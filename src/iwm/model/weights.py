"""Exported weights: `model.safetensors` and `config.json`, never pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import distributed, fields, files
from iwm.runtime.errors import UserError
from iwm.runtime.tensors import save_file

TENSORS, CONFIG = "model.safetensors", "config.json"
"""The two files of a folder of weights."""
DECODER = "decoder.safetensors"
"""The file beside them that `iwm decoder` adds."""

STUDENT, TEACHER = "encoder.", "target_encoder."
"""What the names of the student's and of the EMA encoder's tensors begin with."""

FORMAT = 1
"""Of weights and checkpoints; a higher one comes from a newer iwm and is refused."""


class UnknownFormat(UserError):
    """Weights or a checkpoint of a format that this version does not read."""


def write_weights(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` (`meta`, the format's number, the tensors' checksum) into `folder`.

    Each file is whole or absent. They take their names one after the other; of a crash in between `read` knows by the
    checksum, so the settings of one model are never read with the weights of another.
    """
    with files.replacing(folder / TENSORS) as part:
        save_file(tensors, part)
        content = {"format": FORMAT, "sha256": files.sha256_of(part), **meta}
        files.write_text(folder / CONFIG, json.dumps(content, indent=1))


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of `config.json`. Raises UnknownFormat, and OSError or ValueError where it cannot be read."""
    meta = json.loads((folder / CONFIG).read_text())
    if not isinstance(meta, dict):
        raise ValueError(f"{CONFIG} holds no settings")
    require_known_format(meta, f"The weights in {folder} are")
    return meta


def read_tensors(folder: Path, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that `meta` describes. Raises OSError, SafetensorError, or ValueError where they are of another
    write than `meta`."""
    if "sha256" in meta and files.sha256_of(folder / TENSORS) != meta["sha256"]:
        raise ValueError(f"{TENSORS} is damaged or of another write than {CONFIG}")
    return load_file(folder / TENSORS)


def require_known_format(meta: dict[str, Any], whose: str) -> None:
    """Raises UnknownFormat for what a newer version has written; `whose` begins the sentence, "The weights in X are".

    What was written before formats were noted is of the first.
    """
    number = meta.get("format", FORMAT)
    if number not in range(1, FORMAT + 1):
        raise UnknownFormat(f"{whose} of format {number!r}, this iwm reads formats up to {FORMAT}; update iwm.")


def export(model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write a model for use: its weights, settings and action space. All ranks must call it; rank 0 writes."""
    meta = {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), **extra}
    tensors = distributed.gathered(model.state_dict())
    if distributed.rank() == 0:
        write_weights(folder, tensors, meta)


def export_small(model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write a model for use only, in a quarter of the bytes: no student, all in bf16 but the target statistics.

    `read_model` gives it back in fp32, rounded, and without a student.
    """
    tensors = {
        name: value.bfloat16() if value.is_floating_point() and not name.startswith("target_norm.") else value
        for name, value in model.state_dict().items()
        if not name.startswith(STUDENT)
    }
    meta = {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), "student": False, **extra}
    write_weights(folder, tensors, meta)


def are_in(folder: Path) -> bool:
    """Whether a folder holds exported weights."""
    return (folder / TENSORS).is_file() and (folder / CONFIG).is_file()


def read_model(folder: Path, device: str | torch.device = "cpu") -> ImageWorldModel:
    """The world model of a folder of weights, in eval mode. Raises UserError when they cannot be read."""
    try:
        meta = read_meta(folder)
        tensors = read_tensors(folder, meta)
        settings = fields.from_dict(config.Config, meta["settings"])
        model = ImageWorldModel(settings, ActionSpace.from_spec(meta["actions"]))
        model.has_student = bool(meta.get("student", True))
        if not model.has_student:
            copies = {name.replace(TEACHER, STUDENT, 1): tensors[name] for name in tensors if name.startswith(TEACHER)}
            tensors |= {name: value for name, value in copies.items() if name in model.state_dict()}
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights in {folder} cannot be read ({reason}); export them again.") from None
    return model.eval().requires_grad_(False).to(device)
