"""Weights of other people: timm models by name or file, and how they start a world model's encoder.

Files are read as safetensors, or as .pth without pickled code (`weights_only=True`).
"""

import pickle
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from iwm.model.encoder import Encoder
from iwm.model.vit import Grid
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.console import console
from iwm.runtime.errors import UserError

ANY_SIZE = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
"""Modules of timm whose models interpolate their positions when told so."""


def open_timm(name: str) -> tuple[str, Any]:
    """Model name and model from `timm:NAME,weights=PATH`, loaded strictly.

    Without weights=PATH timm fetches the model's published ones. Raises UserError naming what does not exist or fit.
    """
    model_name, _, rest = name.removeprefix("timm:").partition(",")
    if not timm.is_model(model_name.split(".")[0]):
        raise UserError(
            f"timm has no model '{model_name}'; `python -c 'import timm; print(timm.list_models())'` lists them."
        )
    if rest and not rest.startswith("weights="):
        raise UserError(f"'{rest}' is not understood in {name}; write timm:NAME,weights=PATH.")
    if not rest:
        try:
            body = timm_model(model_name, pretrained=True)
        except Exception as error:  # whatever the network or the hub raises
            reason = str(error).splitlines()[0]
            raise UserError(
                f"The weights of timm:{model_name} cannot be fetched ({reason}); add ,weights=PATH."
            ) from None
        return model_name, body
    path = Path(rest.removeprefix("weights=")).expanduser()
    if not path.is_file():
        raise UserError(f"There is no weights file {path}; give timm:{model_name},weights=PATH.")
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as weights ({reason}); give .safetensors or a plain state dict."
        ) from None
    body = timm_model(model_name)
    classifier = body.pretrained_cfg.get("classifier") or "head"
    heads = [classifier] if isinstance(classifier, str) else list(classifier)
    # The classifier is not part of the features; everything else has to be there and to fit.
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        body.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"{path} does not hold the weights of {model_name} ({reason}); give the model they are of."
        ) from None
    return model_name, body


def timm_model(name: str, pretrained: bool = False) -> Any:
    """The model without its classifier, in eval mode, taking any image size where timm can."""
    family = timm.model_entrypoint(name.split(".")[0]).__module__.rsplit(".")[-1]
    options: dict[str, Any] = {"dynamic_img_size": True} if family in ANY_SIZE else {}
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options).eval().requires_grad_(False)


@torch.no_grad()
def start_from_timm(encoder: Encoder, name: str) -> None:
    """Copy a timm vision transformer's weights into `encoder`, in place.

    A class token is left out, its positions with it; positions of another grid are resampled. Raises UserError when
    the model is no vision transformer, has other sizes, heads or layers, or expects pixels normalised otherwise.
    """
    model_name, body = open_timm(name)
    if not isinstance(body, VisionTransformer):
        raise UserError(f"timm:{model_name} is no vision transformer; --init takes one without special parts.")
    expected = resolve_model_data_config(body)
    mine = encoder.settings
    if tuple(expected["mean"]) != mine.mean or tuple(expected["std"]) != mine.std:
        mean, std = (" ".join(map(str, expected[stat])) for stat in ("mean", "std"))
        raise UserError(f"timm:{model_name} expects other pixels; add --encoder.mean {mean} --encoder.std {std}.")
    _require_same_computation(encoder, body, f"timm:{model_name}")
    left_out = ("cls_token", "reg_token")
    state = {key: value for key, value in body.state_dict().items() if not key.startswith(left_out)}
    grid = body.patch_embed.grid_size
    state["pos_embed"] = _on_grid(state["pos_embed"][:, -grid[0] * grid[1] :], grid, encoder.grid)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"timm:{model_name} does not fit these settings ({reason}); use its sizes.") from None


@torch.no_grad()
def start_from_run(model: ImageWorldModel, other: ImageWorldModel, name: str) -> None:
    """Copy the weights of another world model, called `name`, into `model`, in place.

    Its image size may differ: the encoders' positions are resampled, as wherever a model is shown images of another
    size; the predictor's are computed from the grid. Raises UserError where other settings lie behind the weights,
    those that no weight shows among them.
    """
    _require_same_settings(model, other, name)
    state = other.state_dict()
    for part in ("encoder.pos_embed", "target_encoder.pos_embed"):
        state[part] = _on_grid(state[part], other.grid, model.grid)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"The weights of {name} do not fit these settings ({reason}); use the same sizes.") from None


def _on_grid(positions: Float[Tensor, "1 n d"], old: Grid, new: Grid) -> Float[Tensor, "1 m d"]:
    return positions if old == new else resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=0)


def _require_same_computation(encoder: Encoder, body: VisionTransformer, name: str) -> None:
    """Raises UserError where the same weights compute something else in `encoder` than in `body`: other heads, another
    activation, another epsilon of a LayerNorm. No weight shows the difference."""
    mine, theirs = (cast(Block, model.blocks[0]) for model in (encoder, body))
    heads = theirs.attn.num_heads
    if mine.attn.num_heads != heads:
        raise UserError(f"{name} has {heads} heads of attention; add --encoder.heads {heads}.")
    layers = ([*mine.modules(), encoder.norm], [*theirs.modules(), body.norm])
    for one, other in zip(*layers, strict=False):
        if type(one) is not type(other) or getattr(one, "eps", None) != getattr(other, "eps", None):
            raise UserError(f"{name} computes otherwise than our encoder ({other} for {one}); --init cannot take it.")


def _require_same_settings(model: ImageWorldModel, other: ImageWorldModel, name: str) -> None:
    """Raises UserError for the first setting that changes what the weights compute and that no weight shows."""
    mine, theirs = model.settings, other.settings
    for stat in ("heads", "mean", "std"):
        was, now = getattr(theirs.encoder, stat), getattr(mine.encoder, stat)
        if was != now:
            words = " ".join(map(str, was)) if isinstance(was, tuple) else was
            raise UserError(f"{name} was trained with encoder.{stat} = {was}; add --encoder.{stat} {words}.")
    if not model.objective.predicts:
        return
    was, now = theirs.predictor.conditioning, mine.predictor.conditioning
    if was != now:
        raise UserError(f"{name} was trained with conditioning {was}; add --predictor.conditioning {was}.")
    if other.space.names != model.space.names:
        raise UserError(
            f"{name} was trained with the actions {', '.join(other.space.names)}, these settings have "
            f"{', '.join(model.space.names)}; use the same --actions."
        )
    before, after = ({t.name: (t.low, t.high) for t in one.space.transformations if t.graded} for one in (other, model))
    changed = [part for part in after if before[part] != after[part]]
    if changed:
        console.print(
            f"[yellow]The range of {', '.join(changed)} is another one than in {name}: its predictor has to learn what "
            "the numbers of an action now mean."
        )
