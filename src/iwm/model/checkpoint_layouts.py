"""Checkpoints of others: how the authors of I-JEPA, MAE, DINO, DINOv2 and DINOv3 lay out what they publish.

    I-JEPA    {"target_encoder": {"module.blocks.0..."}, "encoder": ..., "predictor": ...}
    MAE       {"model": {"blocks.0...", "decoder_blocks.0...", "mask_token"}}
    DINO      {"teacher": {"backbone.blocks.0...", "head.mlp..."}, "student": ...}, or the backbone alone
    DINOv2    {"teacher": {"backbone.blocks.0.0...", "dino_head...", "ibot_head..."}}, or the backbone alone
    others    {"state_dict_ema" | "model_ema" | "state_dict" | "model": ...}, keys with module., encoder. or backbone.

The EMA teacher comes before the student. What is left is brought to timm's names by timm's own filters.
"""

import argparse
import pickle
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iwm.runtime.errors import UserError, first_line

BRANCHES = ("state_dict_ema", "model_ema", "target_encoder", "teacher", "state_dict", "model", "encoder")
"""Where a checkpoint keeps its weights, the best first."""
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.", "model.", "target_encoder.", "body.")
"""What stands before the names of an encoder's weights."""
BESIDE = ("decoder", "dino_head.", "ibot_head.", "head.", "predictor.", "projector.", "contrast", "fc_norm.", "fc.")
"""Beginnings of what a checkpoint holds that is no part of the features."""


def read(path: Path) -> dict[str, Any]:
    """The content of a file of weights, no code run. Raises UserError when there is none or it cannot be read."""
    if not path.is_file():
        raise UserError(f"There is no weights file {path}; give timm:NAME,weights=PATH.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # Command line options lie beside the weights in MAE's and DINO's checkpoints: names and values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # in many words it advises to run whatever the file holds
        raise UserError(
            f"{path} holds code, or is no file of PyTorch's; give .safetensors or a plain state dict."
        ) from None
    except Exception as error:  # whatever torch raises on what is no checkpoint
        reason = first_line(error)
        raise UserError(
            f"{path} cannot be read as weights ({reason}); give .safetensors or a plain state dict."
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} cannot be read as weights (it holds a {type(content).__name__}); give a state dict.")
    return dict(content)


def encoder_weights(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The encoder's weights of a checkpoint by their bare names."""
    branch = next((content[name] for name in BRANCHES if isinstance(content.get(name), Mapping)), None)
    if branch is not None:
        return encoder_weights(branch)
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    while prefix := _common_prefix(tensors):
        # What does not bear it lies beside the encoder: heads, a decoder, the student's centre.
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    # Blocks in chunks, blocks.CHUNK.BLOCK., as DINOv2's were sharded.
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in tensors.items()}


def _common_prefix(names: Iterable[str]) -> str:
    """The prefix behind which a patch embedding or blocks lie; empty where they lie bare."""
    names = list(names)
    if any(re.match(r"(blocks|stages|layers)\.\d|patch_embed\.", name) for name in names):
        return ""
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)), "")


def load(body: nn.Module, path: Path, name: str) -> None:
    """Load a file of weights into timm's model `name`, strictly but for what is no part of the features.

    Raises UserError in one sentence where it cannot be read or does not fit.
    """
    state = encoder_weights(read(path))
    own = body.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(BESIDE)}
    if not {key for key in state if key in own} or any(
        key not in state or state[key].shape != value.shape for key, value in own.items()
    ):
        state = _converted(state, body, name)
    classifier = getattr(body, "pretrained_cfg", {}).get("classifier") or "head"
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: value for key, value in state.items() if key in own or not key.startswith((*heads, *BESIDE))}
    state.pop("mask_token", None)
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}"
        raise UserError(f"{path} does not hold the weights of {name} ({what}); give the model they are of.")
    for key, value in own.items():
        if state[key].shape != value.shape:
            there, wanted = (" x ".join(map(str, each.shape)) for each in (state[key], value))
            raise UserError(
                f"{path} does not hold the weights of {name} ({key} is {there} there, {wanted} here); give the model "
                "they are of."
            )
    body.load_state_dict(state)


def _converted(state: dict[str, Tensor], body: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights under timm's names, by the filter of the model's family; as they are where that cannot read them."""
    module = sys.modules[timm.model_entrypoint(name.split(".")[0]).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), body))
    except (KeyError, AttributeError, RuntimeError, AssertionError, ValueError, TypeError):
        return state  # what does not fit is named where the weights are compared
