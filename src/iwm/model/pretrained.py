"""Weights of other people: timm models by name, file or hub, and how they become, or start, a world model's encoder.

Files are read as safetensors, or as .pth without pickled code (`weights_only=True`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from timm.data.config import resolve_model_data_config
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from iwm import config
from iwm.model import checkpoint_layouts
from iwm.model.architecture import described, parsed, timm_model, written
from iwm.model.encoder import Encoder
from iwm.model.foreign_encoder import ForeignEncoder, stands_still
from iwm.model.objectives.invariance import PROJECTOR
from iwm.model.objectives.objective import ModelParts
from iwm.model.vit import Grid
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.console import console
from iwm.runtime.errors import UserError, did_you_mean, first_line

RANDOM = "random"
"""In place of a file of weights: as drawn."""


@dataclass(frozen=True)
class Origin:
    """Where an encoder of others comes from, read from its name."""

    name: str
    """As given."""
    model: str
    """timm's name, or the hub's ID."""
    weights: str
    """A file; "random"; or empty, for the published ones."""

    @classmethod
    def of(cls, name: str) -> "Origin":
        """timm:NAME[,weights=PATH] or hf-hub:ID. Raises UserError for anything else, and what timm does not have."""
        kind, _, rest = name.partition(":")
        model, _, option = rest.partition(",")
        if kind not in ("timm", "hf-hub") or not model:
            raise UserError(f"'{name}' names no encoder; give timm:NAME, timm:NAME,weights=PATH or hf-hub:ID.")
        if option and not option.startswith("weights="):
            raise UserError(f"'{option}' is not understood in {name}; write {kind}:NAME,weights=PATH.")
        if kind == "timm" and not timm.is_model(model.split(".")[0]):
            raise UserError(
                f"timm has no model '{model}'; `python -c 'import timm; print(timm.list_models())'` lists them."
            )
        base, _, tag = model.partition(".")
        if kind == "timm" and tag and model not in (tagged := timm.list_pretrained(f"{base}.*")):
            tags = [each.removeprefix(f"{base}.") for each in tagged]
            raise UserError(f"timm has no weights '{tag}' of {base}: {did_you_mean(tag, tags)}")
        return cls(name, model, option.removeprefix("weights="))

    @property
    def on_hub(self) -> bool:
        return self.name.startswith("hf-hub:")

    @property
    def title(self) -> str:
        """The name without its file of weights."""
        return self.name.partition(",")[0]

    def architecture(self) -> tuple[str, dict[str, Any] | None]:
        """timm's architecture with its arguments, and the hub's word on how pixels are normalised.

        Raises UserError when the hub cannot be asked, or has another kind of model there.
        """
        if not self.on_hub:
            return self.model, None
        try:
            pretrained_cfg, name, arguments = timm.models.load_model_config_from_hf(self.model)
        except Exception as error:  # whatever the network, the hub or the file raises
            raise UserError(
                f"{self.name} cannot be read as a timm model ({first_line(error)}); check the ID and the network."
            ) from None
        return written(name, arguments or {}), pretrained_cfg

    def body(self) -> Any:
        """The model with its weights. Raises UserError naming what cannot be fetched, read or made to fit."""
        architecture, pretrained_cfg = self.architecture()
        name, arguments = parsed(architecture)
        if self.weights:
            body = timm_model(name, **arguments)
            if pretrained_cfg is not None:
                body.pretrained_cfg = pretrained_cfg
            if self.weights != RANDOM:
                checkpoint_layouts.load(body, Path(self.weights).expanduser(), name)
            return body
        try:
            return timm_model(name, pretrained=True, source=self.name if self.on_hub else "", **arguments)
        except Exception as error:  # whatever the network or the hub raises
            mend = "check the network" if self.on_hub else "add ,weights=PATH"
            raise UserError(f"The weights of {self.name} cannot be fetched ({first_line(error)}); {mend}.") from None


def is_timm(run: str) -> bool:
    """Whether a RUN names an encoder of timm: timm:NAME, or an hf-hub:ID that holds a timm model."""
    if run.startswith("timm:"):
        return True
    if not run.startswith("hf-hub:"):
        return False
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    identity, _, revision = run.partition(",")[0].removeprefix("hf-hub:").partition("@")
    try:
        content = json.loads(Path(hf_hub_download(identity, "config.json", revision=revision or None)).read_text())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return False  # who opens it as a world model says why that cannot be
    return isinstance(content, dict) and "architecture" in content


def open_timm(name: str) -> tuple[Origin, Any]:
    """Where a model is from, and the model, from `timm:NAME[,weights=PATH]` or `hf-hub:ID`, loaded strictly.

    Without weights=PATH timm fetches the model's published ones. Raises UserError naming what does not exist or fit.
    """
    origin = Origin.of(name)
    return origin, origin.body()


def with_encoder(settings: config.Encoder, own: Mapping[str, Any]) -> config.Encoder:
    """The settings of an encoder of others with the sizes it brings; those of ours come back as they are.

    `own` are sizes that nobody chose (a recipe's). Settings that were written before hold the sizes of their encoder;
    those may be left behind by another name. Raises UserError when another size was given, or there is no such encoder.
    """
    if not settings.name:
        return settings
    result = described(settings, *Origin.of(settings.name).architecture())
    for name, value in own.items():
        chosen, brought = getattr(settings, name), getattr(result, name)
        accepted = (brought,) if settings.architecture == result.architecture else (value, brought)
        if settings.architecture in ("", result.architecture) and chosen not in accepted:
            raise UserError(
                f"{settings.name} has its own encoder.{name} ({brought}); leave out the {chosen} that was given."
            )
    return result


def random_and_still(settings: config.Encoder) -> config.Encoder:
    """The same encoder, as drawn, of which nothing is trained: a control."""
    name = settings.name and f"{settings.name.split(',')[0]},weights={RANDOM}"
    return replace(settings, name=name, train="none")


@torch.no_grad()
def load_encoder(encoder: ForeignEncoder) -> None:
    """Give an encoder of others the weights that its name stands for, in place. Raises UserError when there are none
    or they do not fit."""
    origin = Origin.of(encoder.settings.name)
    if origin.weights == RANDOM:
        return
    state = origin.body().state_dict()
    try:
        encoder.body.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"The weights of {origin.name} do not fit its architecture ({reason}); give its own.") from None


def load_into(model: ModelParts) -> None:
    """Give student and teacher the weights of the encoder that the settings name, in place.

    Raises UserError as `load_encoder`.
    """
    teacher, student = model.target_encoder, model.encoder
    assert isinstance(teacher, ForeignEncoder)
    load_encoder(teacher)
    if student is not teacher:
        student.load_state_dict(teacher.state_dict())


@torch.no_grad()
def start_from_timm(encoder: Encoder, name: str) -> None:
    """Copy the weights of timm's vision transformer of that name into `encoder`, in place.

    A class token is left out, its positions with it; positions of another grid are resampled. Raises UserError when
    the model is no vision transformer, has other sizes, heads, layers or parts, or expects pixels normalised otherwise.
    """
    origin, body = open_timm(name)
    title, whole = origin.title, f"use it as it is, with --encoder.name {name}"
    if not isinstance(body, VisionTransformer):
        raise UserError(f"{title} is no vision transformer, which --init would need; {whole}.")
    expected = resolve_model_data_config(body)
    mine = encoder.settings
    if tuple(expected["mean"]) != mine.mean or tuple(expected["std"]) != mine.std:
        mean, std = (" ".join(map(str, expected[stat])) for stat in ("mean", "std"))
        raise UserError(f"{title} expects other pixels; add --encoder.mean {mean} --encoder.std {std}.")
    left_out = ("cls_token",) if mine.registers else ("cls_token", "reg_token")
    theirs = body.num_reg_tokens if body.no_embed_class else 0  # others add positions to them
    if mine.registers not in (0, theirs):
        raise UserError(
            f"{title} has {theirs or 'no'} registers that our encoder can take, encoder.registers is {mine.registers}; "
            f"give {theirs}."
        )
    state = {key: value for key, value in body.state_dict().items() if not key.startswith(left_out)}
    beyond = sorted({key.split(".")[-2] for key in state if key not in encoder.state_dict() and "blocks.0." in key})
    if beyond:
        raise UserError(f"{title} has parts that our encoder has not ({', '.join(beyond)}); {whole}.")
    _require_same_computation(encoder, body, title)
    grid = body.patch_embed.grid_size
    state["pos_embed"] = _on_grid(state["pos_embed"][:, -grid[0] * grid[1] :], grid, encoder.grid)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{title} does not fit these settings ({reason}); use its sizes, or {whole}.") from None


@torch.no_grad()
def start_from_run(model: ImageWorldModel, other: ImageWorldModel, name: str) -> None:
    """Copy the weights of another world model, called `name`, into `model`, in place.

    Its image size may differ: the encoders' positions are resampled, as wherever a model is shown images of another
    size; the predictor's are computed from the grid. One of the two may lack the projector of
    objective.invariance_weight: `model` then keeps its own, or has none. Raises UserError where other settings lie
    behind the weights, those that no weight shows among them.
    """
    _require_same_settings(model, other, name)
    if stands_still(model.settings.encoder):
        _require_same_still_encoder(model, other, name)
    state = other.state_dict()
    theirs, fresh = _projector(state), _projector(model.state_dict())
    if theirs.keys() != fresh.keys():  # one of the two has none
        state = {key: value for key, value in state.items() if key not in theirs} | fresh
    own = () if model.settings.encoder.name else ("encoder.pos_embed", "target_encoder.pos_embed")
    for part in own:  # an encoder of others resamples its positions by itself
        state[part] = _on_grid(state[part], other.grid, model.grid)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"The weights of {name} do not fit these settings ({reason}); use the same sizes.") from None


def _projector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a model's state is the projector of objective.invariance_weight."""
    return {key: value for key, value in state.items() if key.startswith(f"{PROJECTOR}.")}


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


def _require_same_still_encoder(model: ImageWorldModel, other: ImageWorldModel, name: str) -> None:
    """Raises UserError when an encoder that stands still would be replaced: its tokens may be stored already."""
    own, theirs = model.target_encoder.state_dict(), other.target_encoder.state_dict()
    if own.keys() != theirs.keys() or any(not torch.equal(own[key].cpu(), theirs[key].cpu()) for key in own):
        raise UserError(
            f"{name} has other weights than {model.settings.encoder.name}, which stands still; give the encoder.name "
            f"of {name}."
        )


def _require_same_settings(model: ImageWorldModel, other: ImageWorldModel, name: str) -> None:
    """Raises UserError for the first setting that changes what the weights compute and that no weight shows."""
    mine, theirs = model.settings, other.settings
    was, now = theirs.encoder.architecture, mine.encoder.architecture
    if was != now:
        raise UserError(f"{name} was trained with encoder.architecture {was or 'of ours'}, here it is {now or 'ours'}.")
    # 0, -1 and the depth are names of one block; of another depth the weights do not fit.
    if theirs.encoder.layer != mine.encoder.layer and other.encoder.layer != model.encoder.layer:
        was = theirs.encoder.layer
        raise UserError(
            f"{name} was trained with encoder.layer {was} (block {other.encoder.layer}), here it is block "
            f"{model.encoder.layer}; add --encoder.layer {was}."
        )
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
    _require_same_prediction(mine, theirs, name)
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


def _require_same_prediction(mine: config.Config, theirs: config.Config, name: str) -> None:
    """Raises UserError for the first setting that makes a predictor say something else: the tokens of other blocks,
    other units, or a change in place of what there is."""
    if theirs.predictor.residual != mine.predictor.residual:
        says, flag = ("a change", "residual") if theirs.predictor.residual else ("no change", "no-residual")
        raise UserError(f"{name} was trained to predict {says} of its tokens; add --predictor.{flag}.")
    for setting in ("target_norm", "target_layers"):
        was, now = getattr(theirs.objective, setting), getattr(mine.objective, setting)
        if was != now:
            raise UserError(
                f"{name} was trained with objective.{setting} {was}, here it is {now}, so its predictor says something "
                f"else; add --objective.{setting} {was}."
            )
