"""Exported weights: `model.safetensors` and `config.json`, never pickled."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.model import pixel_decoder, pretrained
from iwm.model.foreign_encoder import ForeignEncoder
from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import distributed, fields, files, shards
from iwm.runtime.errors import UserError, first_line
from iwm.runtime.tensors import save_file

TENSORS, CONFIG = "model.safetensors", "config.json"
"""The two files of a folder of weights."""
DECODER = "decoder.safetensors"
"""The file beside them that `iwm decoder` adds."""

PUBLISHED = "published_encoder"
"""In `config.json`: the encoder that the weights leave out, as its name stands for it, with the tensors' checksum."""
STUDENT, TEACHER = "encoder.", "target_encoder."
"""What the names of the student's and of the EMA encoder's tensors begin with."""

FINETUNED = ("classifier", "segmenter")
"""In `config.json`: what a finetuning made of a world model."""
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError),
)
"""What damaged files and settings raise."""

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


def export(model: ImageWorldModel, folder: Path, *, rounded: bool = False, **extra: Any) -> None:
    """Write a model for use: its weights (`rounded`: `small` ones), settings and action space. All ranks must call it;
    rank 0 writes."""
    meta = {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), **extra}
    tensors = shards.gathered(model.state_dict())
    if distributed.rank() == 0:
        write_weights(folder, small(tensors) if rounded else tensors, meta | ({"student": False} if rounded else {}))


def small(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A world model's tensors for use only, in a quarter of the bytes: no student, all in bf16 but the target
    statistics. `read_model` gives them back in fp32."""
    return {
        name: value.bfloat16() if value.is_floating_point() and not name.startswith("target_norm.") else value
        for name, value in tensors.items()
        if not name.startswith(STUDENT)
    }


def are_in(folder: Path) -> bool:
    """Whether a folder holds exported weights."""
    return (folder / TENSORS).is_file() and (folder / CONFIG).is_file()


def read_model(folder: Path, device: str | torch.device = "cpu") -> ImageWorldModel:
    """The world model of a folder of weights, in eval mode. Raises UserError when they cannot be read."""
    try:
        meta = read_meta(folder)
        if kind := next((kind for kind in FINETUNED if kind in meta), ""):
            raise UserError(
                f"{folder} is a finetuned {kind}, no world model; load it with iwm.load_{kind}, or give the run it is "
                "of."
            )
        tensors = read_tensors(folder, meta)
        settings = fields.from_dict(config.Config, meta["settings"])
        model = ImageWorldModel(settings, ActionSpace.from_spec(meta["actions"]))
        model.has_student = bool(meta.get("student", True))
        if not model.has_student:
            copies = {name.replace(TEACHER, STUDENT, 1): tensors[name] for name in tensors if name.startswith(TEACHER)}
            tensors |= {name: value for name, value in copies.items() if name in model.state_dict()}
        if PUBLISHED in meta:
            tensors |= _published_tensors(model, meta[PUBLISHED])
        model.load_state_dict(tensors)
    except UserError:
        raise
    except UNREADABLE as error:
        reason = first_line(error)
        raise UserError(f"The weights in {folder} cannot be read ({reason}); export them again.") from None
    return model.eval().requires_grad_(False).to(device)


def read_decoder(folder: Path) -> PixelDecoder | None:
    """The pixel decoder beside the weights of a folder; None where there is none that was fitted to them.

    Raises UserError when its file is damaged.
    """
    if not (folder / DECODER).is_file():
        return None
    decoder, mark = pixel_decoder.read(folder / DECODER)
    return decoder if mark == files.sha256_of(folder / TENSORS) else None


# ---- weights that leave this machine -------------------------------------------------------------------------------


def write_for_others(
    folder: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    decoder: PixelDecoder | None = None,
    *,
    rounded: bool = False,
) -> None:
    """Write weights, and the decoder fitted to them, as they may leave this machine: paths are cut to their last name,
    and an encoder of others that was not trained on is named, not copied.

    `meta` is `config.json`'s content; `rounded` weights are `small`.
    """
    own = {name: value for name, value in meta.items() if name not in ("format", "sha256", "training_images")}
    own |= {name: without_paths(own[name]) for name in ("settings", "finetuned") if name in own}
    held = dict(tensors)
    if is_published(own["settings"]["encoder"]) and any(name.startswith(TEACHER) for name in held):
        left_out = {name: held.pop(name) for name in list(held) if name.startswith(TEACHER)}
        own[PUBLISHED] = {"name": own["settings"]["encoder"]["name"], "sha256": checksum(left_out)}
    if rounded:
        held, own = small(held), own | {"student": False}
    write_weights(folder, held, own)
    if decoder is not None:
        dtype = torch.bfloat16 if own.get("student") is False else torch.float32
        decoder.write(folder / DECODER, files.sha256_of(folder / TENSORS), dtype)


def is_published(encoder: Mapping[str, Any]) -> bool:
    """Whether these settings of an encoder name one that others publish and that stays as it is."""
    name = encoder.get("name", "")
    return bool(name) and encoder.get("train") == "none" and "weights=" not in name


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of the values of tensors in fp32, whatever the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {list(tensors[name].shape)} ".encode())
        total.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _published_tensors(model: ImageWorldModel, published: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of an encoder that the weights leave out. Raises UserError when it cannot be had, or is another."""
    assert isinstance(model.target_encoder, ForeignEncoder)
    pretrained.load_encoder(model.target_encoder)
    tensors = {name: value for name, value in model.state_dict().items() if name.startswith(TEACHER)}
    if checksum(tensors) != published["sha256"]:
        raise UserError(
            f"{published['name']} has other weights now than those this predictor was trained on; take the version of "
            "timm, or of the repository, from then."
        )
    return tensors


def without_paths(value: Any) -> Any:
    """Settings in which a path is cut to its last name; names of timm, of the hub and of memory stay as they are."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    parts = re.split(r"([,=])", value)
    return "".join(
        part if re.match(r"(timm|hf|hf-hub|memory):", part) else re.split(r"[/\\]", part)[-1] for part in parts
    )
