"""Encoders of others as timm builds them: which there are, their sizes, their blocks and the tokens these give."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from iwm import config
from iwm.runtime.errors import UserError

ANY_SIZE = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
"""Modules of timm whose models interpolate their positions when told so."""

Layout = Literal["NLC", "NCHW"]


def layer_number(layer: int, depth: int) -> int:
    """Block number from 1 to depth; 0 is the last, negative ones count from the end (-1 is the last too).

    Raises UserError when there is no such block.
    """
    number = depth + 1 + layer if layer < 0 else layer or depth
    if not 1 <= number <= depth:
        raise UserError(
            f"There is no layer {layer} in an encoder of {depth} blocks; give 1 to {depth}, or 0 for the last."
        )
    return number


def last_blocks(train: str) -> int | None:
    """How many blocks of the encoder `encoder.train` lets learn: K of last-K, 0 of none; None: all it has.

    Raises UserError for anything else.
    """
    if train in ("all", "none"):
        return None if train == "all" else 0
    count = train.removeprefix("last-")
    if count == train or not count.isdigit() or not int(count):
        raise UserError(f"encoder.train is {train!r}; give none, last-K (K blocks, 1 or more) or all.")
    return int(count)


def family_of(name: str) -> str:
    """The module of timm that a model is from."""
    return timm.model_entrypoint(name.split(".")[0]).__module__.rsplit(".")[-1]


def timm_model(name: str, pretrained: bool = False, source: str = "", **arguments: Any) -> Any:
    """The model without its classifier, in eval mode, taking any image size where timm can.

    `source` is where timm gets it from, if not by its name: hf-hub:ID."""
    options: dict[str, Any] = {"dynamic_img_size": True} if family_of(name) in ANY_SIZE else {}
    options |= {**arguments, "num_classes": 0}
    return timm.create_model(source or name, pretrained=pretrained, **options).eval().requires_grad_(False)


def timm_body(architecture: str, image_size: int) -> Any:
    """The model of `Encoder.architecture` with weights drawn anew; one that takes no other size is made for this."""
    name, arguments = parsed(architecture)
    if family_of(name) not in ANY_SIZE and "img_size" in arguments:
        arguments["img_size"] = image_size
    return timm_model(name, **arguments)


def parsed(architecture: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an architecture: NAME, or NAME with a JSON object behind it."""
    name, _, arguments = architecture.partition(" ")
    return name, json.loads(arguments) if arguments else {}


def written(name: str, arguments: dict[str, Any]) -> str:
    """The architecture that `parsed` takes apart."""
    return f"{name} {json.dumps(arguments)}" if arguments else name


def layout_of(body: Any) -> Layout:
    """How a model gives its blocks' outputs: as tokens where it can."""
    return "NLC" if hasattr(body, "num_prefix_tokens") and hasattr(body, "blocks") else "NCHW"


def block_tokens(
    body: Any, pixels: Float[Tensor, "b 3 h w"], numbers: Sequence[int] | None, layout: Layout
) -> list[Float[Tensor, "b _k _d"]]:
    """Patch tokens after the blocks of these numbers from 1 (None: all), before any norm; class and register tokens
    are left out, maps are read row by row."""
    indices = None if numbers is None else [number - 1 for number in numbers]
    stop = {"stop_early": True} if indices is not None else {}
    outputs = body.forward_intermediates(
        pixels, indices=indices, norm=False, output_fmt=layout, intermediates_only=True, **stop
    )
    return [x if x.ndim == 3 else x.flatten(2).transpose(1, 2) for x in outputs]


def blocks_of(body: Any) -> list[nn.Module]:
    """The modules whose outputs `forward_intermediates` gives, in their order. Raises UserError when they are not to
    be told."""
    for name in ("blocks", "stages", "layers"):
        stack = getattr(body, name, None)
        if isinstance(stack, nn.Sequential | nn.ModuleList):
            return list(stack)
    raise UserError(f"{type(body).__name__} has no list of blocks, so none of them can be chosen; give another model.")


def first_block(body: Any) -> nn.Module:
    """The first block, or the model itself where its blocks are not to be told."""
    try:
        return blocks_of(body)[0]
    except UserError:
        return body


SIZES = ("patch_size", "width", "depth", "heads", "mlp_ratio", "mean", "std")
"""Settings of the encoder that one of others sets by itself."""


def described(settings: config.Encoder, architecture: str, pretrained_cfg: dict[str, Any] | None) -> config.Encoder:
    """The settings with the architecture and the sizes it has at `settings.layer`.

    Nothing is computed, only shapes (on the device "meta"). Raises UserError when it has no `forward_intermediates` or
    no such layer.
    """
    name, arguments = parsed(architecture)
    with torch.device("meta"):
        body = timm_model(name, **arguments)
    if not hasattr(body, "forward_intermediates"):
        raise UserError(f"timm's {name} gives no tokens of its blocks (forward_intermediates); give another model.")
    if pretrained_cfg is not None:
        body.pretrained_cfg = pretrained_cfg
    expected = resolve_model_data_config(body)
    own_size = getattr(getattr(body, "patch_embed", None), "img_size", None)
    height, layout = own_size[0] if own_size else expected["input_size"][-1], layout_of(body)
    outputs = block_tokens(body, torch.zeros(1, 3, height, height, device="meta"), None, layout)
    tokens = outputs[layer_number(settings.layer, len(outputs)) - 1]
    side = round(tokens.shape[1] ** 0.5)
    block = first_block(body)
    hidden = getattr(getattr(getattr(block, "mlp", None), "fc1", None), "out_features", 4 * tokens.shape[2])
    if side**2 != tokens.shape[1]:
        raise UserError(f"timm's {name} gives {tokens.shape[1]} tokens, no square grid; give another model.")
    mean, std = ((float(one), float(two), float(three)) for one, two, three in (expected["mean"], expected["std"]))
    return replace(
        settings,
        architecture=architecture,
        patch_size=height // side,
        width=tokens.shape[2],
        depth=len(outputs),
        heads=int(getattr(getattr(block, "attn", None), "num_heads", 1)),
        mlp_ratio=hidden / tokens.shape[2],
        mean=mean,
        std=std,
    )
