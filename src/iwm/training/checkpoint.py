"""Checkpoints and weights as safetensors + JSON: atomic, checksummed, never pickled.

The format is the same however many ranks trained and however they shared the state: rank 0 writes all of it, each shard
gathered in turn, and every rank reads it and takes what is its own. So a run goes on with any number of ranks.

A checkpoint is a folder `checkpoints/step-00001234/` with `state.safetensors` (model and optimiser) and `state.json`
(step, settings, action space, checksum). It is written beside its final place, synced to disk and renamed, to a name
that nothing bears, so it is whole or absent.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from iwm import config
from iwm.model.weights import FORMAT, UnknownFormat, require_known_format
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import distributed, fields, files, shards
from iwm.runtime.errors import UserError
from iwm.runtime.files import sha256_of
from iwm.runtime.tensors import save_file


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified."""

    path: Path
    step: int
    updates: int
    """Steps that moved the weights: the schedule's position."""
    images: int
    settings: config.Config
    actions: dict[str, Any] | None
    """`ActionSpace.spec()`; None in older checkpoints."""
    training_images: list[dict[str, Any] | None] | None
    """`splits.training_record`; None in older checkpoints too."""
    tensors: dict[str, Tensor]
    """Parts of the mapped file: it stays mapped as long as one of them is there."""


def state_of(model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The whole state of a run on the host of rank 0, empty on other ranks; all must call it."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {
        f"optimiser.{key}.{name}": value
        for optimiser in optimisers
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    return shards.gathered(tensors)


def save(
    folder: Path,
    step: int,
    model: ImageWorldModel,
    optimisers: list[torch.optim.Optimizer],
    keep: int,
    images: int,
    updates: int | None = None,
    training_images: list[dict[str, Any] | None] | None = None,
) -> Path:
    """Write the state after `step` optimiser steps and delete all but the newest `keep` checkpoints.

    `images`, the size of the training set, is recorded: the order of the images depends on it; so is `updates`, how
    many of the steps were finite (None: all): there the schedule goes on; so is `training_images`, their
    `splits.training_record`. Whatever lies there of later steps is a damaged checkpoint that was passed over on resume,
    or half of one; it goes. All ranks must call it; rank 0 writes.
    """
    final = folder / f"step-{step:08d}"
    tensors = state_of(model, optimisers)
    if distributed.rank():
        return final
    part = folder / f".part-{step:08d}"
    meta: dict[str, Any] = {"format": FORMAT, "step": step, "updates": step if updates is None else updates}
    meta |= {"images": images, "training_images": training_images}
    meta |= {"settings": fields.to_dict(model.settings), "actions": model.space.spec()}
    with files.naming(final):
        try:
            _write(part, tensors, meta)
        except BaseException:
            for file in part.iterdir() if part.is_dir() else ():
                file.unlink()  # a full disk gets its space back; that a checkpoint was cut off can still be seen
            raise
    if final.exists():  # it goes only once the new one has a name, which sorts after it
        again = folder / f"{final.name}.again"
        shutil.rmtree(again, ignore_errors=True)
        part.rename(again)
        files.sync(folder)
        shutil.rmtree(final)
        part = again
    part.rename(final)
    files.sync(folder)
    there = sorted(folder.glob("step-*"))
    kept = [path for path in there if path.name <= final.name][-keep:]
    for old in [path for path in there if path not in kept] + list(folder.glob(".part-*")):
        shutil.rmtree(old)
    return final


def _write(part: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the files of a checkpoint into the folder `part`, emptied first."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    file = part / "state.safetensors"
    save_file(tensors, file)
    (part / "state.json").write_text(json.dumps(meta | {"sha256": sha256_of(file)}, indent=1))
    for entry in (file, part / "state.json", part):
        files.sync(entry)


def was_cut_off(folder: Path) -> bool:
    """Whether the writing of a checkpoint began, and no checkpoint is there."""
    return any(folder.glob(".part-*")) and not any(folder.glob("step-*"))


def require_space(folder: Path, model: nn.Module, copies: int) -> None:
    """Raises UserError when the disk of `folder` has no room for so many copies of the model's state, beside what lies
    there already. Checkpoints take about twice that, for the optimiser's moments."""
    size = sum(value.nbytes for value in model.state_dict().values())
    there = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    needed = max(0, copies * size - there)
    if needed > free:
        raise UserError(
            f"There is no space for the checkpoints in {folder}: they take {needed / 1e6:,.1f} MB or more and "
            f"{free / 1e6:,.1f} MB are free; free some, lower --keep, or give another --out."
        )


def read(path: Path) -> Checkpoint:
    """Read one checkpoint. Raises UserError naming the file when it is damaged, UnknownFormat when it is newer."""
    file = path / "state.safetensors"
    try:
        meta = json.loads((path / "state.json").read_text())
        require_known_format(meta, f"Checkpoint {path} is")
        if sha256_of(file) != meta["sha256"]:
            raise UserError(f"Checkpoint {path} is damaged (its checksum does not match); delete that folder.")
        settings = fields.from_dict(config.Config, meta["settings"])
        updates = meta.get("updates", meta["step"])  # older checkpoints hold none: their schedule went by the step
        own = (meta["step"], updates, meta["images"], settings, meta.get("actions"), meta.get("training_images"))
        return Checkpoint(path, *own, load_file(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"Checkpoint {path} is damaged ({type(error).__name__}: {error}); delete that folder."
        ) from None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint of a run (None: there is none yet) and a sentence for each damaged one skipped.

    Raises UserError when there are checkpoints and all are damaged, or when one is of a newer format.
    """
    complaints: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return read(path), complaints
        except UnknownFormat:  # it is whole: going on from an older one would delete it
            raise
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError(
            f"No checkpoint in {folder} can be read; delete the folder or give another --out. {complaints[0]}"
        )
    return None, complaints


def restore_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model, in place. Raises UserError when they do not fit."""
    own = model.state_dict()
    whole = {name[6:]: value for name, value in checkpoint.tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict({k: shards.shard_like(own[k], v) if k in own else v for k, v in whole.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"Checkpoint {checkpoint.path} does not fit the present model ({reason}); put settings and transformations "
            "back as they were, or give another --out."
        ) from None


def restore(checkpoint: Checkpoint, model: ImageWorldModel, optimisers: list[torch.optim.Optimizer]) -> None:
    """Put a checkpoint's state into model and optimisers, in place.

    Raises UserError when it holds more than they take, or other sizes.
    """
    restore_weights(checkpoint, model)
    parameters = dict(model.named_parameters())
    takes = {p: optimiser for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]}
    for full, value in checkpoint.tensors.items():
        if full.startswith("optimiser."):
            key, name = full.split(".", 2)[1:]
            parameter = parameters.get(name)
            if parameter is None or parameter not in takes:
                raise UserError(f"Checkpoint {checkpoint.path} holds {full}, which nothing here takes; start anew.")
            alike = value.shape == parameter.shape  # moments are sharded as the parameter is, counters are not
            value = shards.shard_like(parameter, value) if alike else value.to(model.device)
            # A copy, for on a CPU this is the mapped file itself, and a shard is a view of the whole.
            takes[parameter].state[parameter][key] = value.clone()
