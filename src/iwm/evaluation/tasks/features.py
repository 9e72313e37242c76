"""Features of images: which encoder, which layer, how pooled; extracted in batches and remembered by content.

    z = mean over patches of f_l(image)      pooling "mean":   [n, d]
    z = max over patches of f_l(image)       pooling "max":    [n, d]
    z = mean over each quarter, side by side pooling "2x2":    [n, 4 d]
    z = class token of f_l(image)            pooling "class":  [n, d], of encoders that have one
    z = f_l(image)                           pooling "tokens": [n, patches, d], in float16

f_l is the output of block l: the last one's after the encoder's final norm, an earlier one's after a LayerNorm without
affine (the final norm's affine was fitted to the last block). With `layers` = K the last K blocks, all of them after a
LayerNorm without affine, are pooled each for itself and lie side by side: [n, K d] (I-JEPA's protocol). The encoder is
a world model's (EMA by default), any timm model's, one of the same architecture drawn anew, or raw pixels.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64, UInt8
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from iwm import run_folder
from iwm.actions.action_space import ActionSpace
from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_chunks, nothing_readable
from iwm.evaluation.tasks.feature_cache import FeatureCache, digest
from iwm.model import pretrained
from iwm.model.architecture import layer_number, parsed, timm_model
from iwm.model.encoder import PatchEncoder
from iwm.model.foreign_encoder import encoder_of
from iwm.model.vit import choose_attention, without_affine
from iwm.runtime import devices, distributed, sharing
from iwm.runtime.console import progress
from iwm.runtime.devices import CPU, Session
from iwm.runtime.errors import UserError, first_line

Pooling = Literal["mean", "max", "2x2", "class", "tokens"]
Pixels = UInt8[Tensor, "b 3 h w"]

RAW_SIZES = (8, 16, 32)
"""Sides of the raw-pixel baselines, px."""
BATCH = 64
"""Images through an encoder at once: few enough that a small encoder's activations stay in the processor's cache."""
CHUNK = 2**28
"""Bytes of decoded pixels held at once, and hashed and remembered together: small sets are one chunk."""


class FrozenEncoder(nn.Module):
    """Images to tokens, without gradient: what probes look at.

    `size` is the side of the square crops it is shown, px; `layer` the block whose output is taken, from 1 to `depth`;
    `layers`, where it is not 0, how many of the last blocks are taken instead.
    """

    name: str
    architecture: str
    size: int
    layer: int
    depth: int
    layers: int = 0
    last_too: bool = False
    """Whether the last block as it is read alone comes behind the `layers`, of the same pass."""
    space: ActionSpace | None = None
    """What it was trained to see changed, where that is known."""

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks that are read, from 1."""
        return [*range(self.depth - self.layers + 1, self.depth + 1)] if self.layers else [self.layer]

    def forward(self, images: Pixels) -> Float[Tensor, "b n d"]:
        """Tokens of the first block that is read."""
        return self.outputs(images)[0]

    def outputs(self, images: Pixels) -> list[Float[Tensor, "b _n _d"]]:
        """Tokens of every block that is read."""
        raise NotImplementedError

    def class_tokens(self, images: Pixels) -> list[Float[Tensor, "b _d"]]:
        """The class token after every block that is read. Raises UserError where there is none."""
        raise UserError(f"The {self.name} has no class token; give another --pooling, as mean.")

    def reading(self, layers: int, last_too: bool = False) -> "FrozenEncoder":
        """The same encoder, weights shared, of which the last `layers` blocks are read (0: block `layer`)."""
        other = copy.copy(self)
        other.layers, other.last_too = layers, last_too
        return other

    def drawn_anew(self, seed: int) -> "FrozenEncoder":
        """The same architecture with fresh random weights, of which the same blocks are read."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.fresh().reading(self.layers, self.last_too)

    def fresh(self) -> "FrozenEncoder":
        """The same architecture with weights drawn from the global generator."""
        raise NotImplementedError

    def identity(self) -> str:
        """What its features depend on beside the pixels; empty: too cheap to be worth remembering."""
        # The pixels' mean and deviation are buffers outside the state; heads or activations are in no tensor at all.
        values = {**self.state_dict(), **dict(self.named_buffers())}
        blocks = f"last {self.layers}" + " and alone" * self.last_too if self.layers else f"layer {self.layer}"
        return f"{self.architecture} {digest(list(values.items()))} {blocks} of {self.depth}"


class WorldEncoder(FrozenEncoder):
    """An encoder of ours."""

    def __init__(self, body: PatchEncoder, name: str, size: int, layer: int = 0) -> None:
        super().__init__()
        self.body, self.name, self.size = body, name, size
        self.architecture = str(body.settings)
        self.depth = body.depth
        self.layer = layer_number(layer, self.depth)

    @torch.no_grad()
    def outputs(self, images: Pixels) -> list[Float[Tensor, "b _n _d"]]:
        numbers = self.blocks + [self.depth] * self.last_too
        affine = [not self.layers] * len(self.blocks) + [True] * self.last_too
        return self.body.intermediates(images, numbers, affine)

    def fresh(self) -> "WorldEncoder":
        body = encoder_of(self.body.settings, self.body.grid[0] * self.body.patch_size)
        return WorldEncoder(body.eval().requires_grad_(False), "random encoder", self.size, self.layer)


class TimmEncoder(FrozenEncoder):
    """Any timm model: its patch tokens (class token and registers left out), or the cells of its last feature map."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, architecture: str, body: nn.Module, size: int = 0, layer: int = 0) -> None:
        super().__init__()
        settings = resolve_model_data_config(body)
        self.name, self.architecture, self.body = name, architecture, body
        self.size = size or settings["input_size"][-1]
        self.depth = len(cast(Any, getattr(body, "blocks", None) or getattr(body, "feature_info", None) or [body]))
        self.layer = layer_number(layer, self.depth)
        for stat in ("mean", "std"):
            self.register_buffer(stat, torch.tensor(settings[stat]).view(1, 3, 1, 1), persistent=False)

    @property
    def _after_norm(self) -> bool:
        """Whether only the last block is read, whose output the encoder's own norm was fitted to."""
        return not self.layers and self.layer == self.depth

    @torch.no_grad()
    def outputs(self, images: Pixels) -> list[Float[Tensor, "b _n _d"]]:
        if self._after_norm:
            return [self._without_prefix(cast(Any, self.body).forward_features(self._normalised(images)))]
        outputs = [without_affine(self._without_prefix(tokens)) for tokens in self._intermediates(images)]
        return outputs + (self.reading(0).outputs(images) if self.last_too else [])

    @torch.no_grad()
    def class_tokens(self, images: Pixels) -> list[Float[Tensor, "b _d"]]:
        body = cast(Any, self.body)
        if getattr(body, "cls_token", None) is None:
            return super().class_tokens(images)
        if self._after_norm:
            return [body.forward_features(self._normalised(images))[:, 0]]
        outputs = self._intermediates(images, return_prefix_tokens=True)
        tokens = [without_affine(prefix)[:, 0] for _, prefix in outputs]
        return tokens + (self.reading(0).class_tokens(images) if self.last_too else [])

    def _intermediates(self, images: Pixels, **options: Any) -> list[Any]:
        """Every block that is read as timm gives it, not normed."""
        indices = [number - 1 for number in self.blocks]
        inputs, body = self._normalised(images), cast(Any, self.body)
        return body.forward_intermediates(inputs, indices=indices, intermediates_only=True, **options)

    def _normalised(self, images: Pixels) -> Float[Tensor, "b 3 h w"]:
        return (images.float() / 255 - self.mean) / self.std

    def _without_prefix(self, tokens: Tensor) -> Float[Tensor, "b n d"]:
        body = cast(Any, self.body)
        if tokens.ndim == 4:
            # A map: channels first unless the channels are seen to be last.
            channels_last = tokens.shape[-1] == body.num_features != tokens.shape[1]
            return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).transpose(1, 2)
        return tokens[:, getattr(body, "num_prefix_tokens", 0) :]

    def fresh(self) -> "TimmEncoder":
        name, arguments = parsed(self.architecture)
        body = timm_model(name, **arguments)
        body.pretrained_cfg = self.body.pretrained_cfg  # the same pixels
        return TimmEncoder("random encoder", self.architecture, body, self.size, self.layer)


class RawPixels(FrozenEncoder):
    """The picture itself, averaged over areas down to `side` x `side`, as one token of 3 side^2 numbers in [0, 1]."""

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        self.name, self.side, self.size = f"raw pixels {side} x {side}", side, size
        self.layer = self.depth = 1

    @torch.no_grad()
    def outputs(self, images: Pixels) -> list[Float[Tensor, "b 1 d"]]:
        return [F.interpolate(images.float() / 255, size=(self.side, self.side), mode="area").flatten(1)[:, None]]

    def identity(self) -> str:
        return ""


def layer_count(layers: int | Literal["all"], depth: int) -> int:
    """How many of the last blocks `--layers` means. Raises UserError when there are not so many."""
    count = depth if layers == "all" else layers
    if count > depth:
        raise UserError(f"There are no {count} layers in an encoder of {depth} blocks; give 1 to {depth}, or all.")
    return count


def open_encoder(
    run: str, *, student: bool = False, layer: int = 0, layers: int | Literal["all"] = 0, size: int = 0
) -> FrozenEncoder:
    """The frozen encoder of a RUN (EMA unless `student`), or timm's (timm:NAME[,weights=PATH], hf-hub:ID); in eval mode
    on the CPU.

    `layers` reads that many of the last blocks side by side; `size` shows it images of another side than it was trained
    on. Raises UserError when RUN cannot be read or has no such layers.
    """
    if pretrained.is_timm(run):
        if student:
            raise UserError(f"{run} has no student encoder; leave out --student.")
        return open_timm(run, layer=layer, layers=layers, size=size)
    model = run_folder.load_model(run)
    body = model.used_encoder(student)
    encoder = WorldEncoder(body, name_of(student), size or model.settings.data.image_size, layer)
    encoder.space = model.space
    return encoder.reading(layer_count(layers, encoder.depth))


def name_of(student: bool) -> str:
    """What results call a world model's encoder."""
    return "student encoder" if student else "EMA encoder"


def open_timm(name: str, *, layer: int = 0, layers: int | Literal["all"] = 0, size: int = 0) -> FrozenEncoder:
    """A model from timm:NAME[,weights=PATH] or hf-hub:ID. Raises UserError naming what does not exist or fit."""
    origin, body = pretrained.open_timm(name)
    whole = TimmEncoder(origin.title, origin.architecture()[0], body, size, layer)
    encoder = whole.reading(layer_count(layers, whole.depth))
    try:
        encoder.outputs(torch.zeros(1, 3, encoder.size, encoder.size, dtype=torch.uint8))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"{origin.title} gives no tokens of images of {encoder.size} px after layer {encoder.layer} ({reason}); "
            "give another --size or --layer, or another model."
        ) from None
    return encoder


@dataclass(frozen=True)
class Labelled:
    """Features of the readable images of a split, one tensor an encoder, with their labels."""

    features: list[Float[Tensor, "n _d"] | Float16[Tensor, "n _t _d"]]
    labels: Int64[Tensor, " n"]


def extract(
    encoders: Sequence[FrozenEncoder],
    images: ImageSet,
    *,
    session: Session,
    pooling: Pooling = "mean",
    cache: Path | None = None,
) -> Labelled:
    """Features of all images under all encoders; every image is decoded once, broken ones are left out. Of several
    ranks each does its share of the images, and all get all features.

    `cache` is a folder for features found by content (`FeatureCache`). All encoders must be shown the same size. Raises
    UserError where no image can be decoded.
    """
    size = encoders[0].size
    assert all(encoder.size == size for encoder in encoders)
    assert images.labels is not None
    store = FeatureCache(cache, len(images)) if cache else None
    marks = [encoder.identity() if store else "" for encoder in encoders]
    whole: list[Tensor | None] = [None] * len(encoders)
    kept: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    count, room = 0, len(sharing.share_of(len(images)))
    with distributed.share():
        for pixels, rows in load_chunks(images, size, max(1, CHUNK // (3 * size * size))):
            kept.append(rows)
            content = digest([("pixels", pixels)]) if store else ""
            for number, (encoder, mark) in enumerate(zip(encoders, marks, strict=True)):
                compute = partial(encode, encoder, pixels, pooling=pooling, session=session)
                key = f"{mark} {content} {pooling} {session.precision} {session.device.type}"
                with distributed.alone():
                    part = store.remembered(key, compute) if store and mark else compute()
                whole[number] = _with_part(whole[number], part, count, room)
            count += len(rows)
    rows = sharing.gathered(torch.from_numpy(np.concatenate(kept)))
    features = []
    while whole:  # one after the other: where ranks gather, a single encoder's features are there twice
        mine = whole.pop(0)
        features.append(sharing.gathered(None if mine is None else mine[:count]))
    if rows is None or not len(rows):
        raise nothing_readable(images)
    labels = torch.from_numpy(np.asarray(images.labels)[rows.numpy()].astype(np.int64))
    return Labelled([each for each in features if each is not None], labels)


def apart(
    encoder: FrozenEncoder, values: Float[Tensor, "n *_d"], pooling: Pooling, session: Session
) -> dict[str, Float[Tensor, "n *_e"]]:
    """An encoder's features of the blocks that it reads, and those of the "last_block_" alone, if they come behind."""
    if not encoder.last_too:
        return {"": values}
    one = torch.zeros(1, 3, encoder.size, encoder.size, dtype=torch.uint8)
    width = encode_batch(prepared(encoder.reading(0), session), one, pooling, session).shape[1]
    return {"": values[:, :-width], "last_block_": values[:, -width:]}


def _with_part(whole: Tensor | None, part: Tensor, start: int, room: int) -> Tensor:
    """The features of up to `room` images with those from `start` on filled in: each lies in memory once."""
    if len(part) == room:
        return part
    if whole is None:
        whole = part.new_empty(room, *part.shape[1:])
    whole[start : start + len(part)] = part
    return whole


def require_memory(encoders: Sequence[FrozenEncoder], images: int, session: Session) -> None:
    """Raises UserError when the tokens of so many images under all encoders do not fit into free memory."""
    size = encoders[0].size
    one = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    needed = sum(encode_batch(prepared(encoder, session), one, "tokens", session).nbytes for encoder in encoders)
    mends = ["lower --size", *["give --no-baselines"] * (len(encoders) > 1), "give fewer images"]
    what = f"The tokens of {images:,} images of {size} px by {len(encoders)} encoder{'s' * (len(encoders) > 1)}"
    devices.require_memory(images * needed, what, f"{', '.join(mends[:-1])} or {mends[-1]}")


def pooled(tokens: Float[Tensor, "b n d"], pooling: Pooling) -> Tensor:
    """One vector an image in float32, or all its tokens in float16.

    Raises UserError for "2x2" where the tokens do not lie on a square grid.
    """
    if pooling == "tokens":
        return tokens.half()
    if pooling == "2x2":
        side = math.isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1]:
            raise UserError(f"--pooling 2x2 needs tokens on a square grid, not {tokens.shape[1]} of them; use mean.")
        grid = tokens.float().transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(grid, 2).permute(0, 2, 3, 1).flatten(1)
    return tokens.float().mean(dim=1) if pooling == "mean" else tokens.float().amax(dim=1)


def encode(encoder: FrozenEncoder, pixels: Pixels, *, pooling: Pooling = "mean", session: Session = CPU) -> Tensor:
    """Features of decoded images on the CPU: float32 [n, d], [n, 4 d] for "2x2", float16 [n, t, d] for "tokens"; of
    several `layers` side by side. All ranks have the images, each encodes its share."""
    encoder = prepared(encoder, session)
    return sharing.by_rows(lambda mine: _encode(encoder, mine, pooling, session), pixels)


def _encode(encoder: FrozenEncoder, pixels: Pixels, pooling: Pooling, session: Session) -> Tensor:
    done = []
    with progress("images") as bar:
        task = bar.add_task(encoder.name, total=len(pixels), note="")
        for batch in pixels.split(BATCH):
            done.append(encode_batch(encoder, batch, pooling, session))
            bar.advance(task, len(batch))
    return torch.cat(done)


def prepared(encoder: FrozenEncoder, session: Session) -> FrozenEncoder:
    """The encoder itself, on the session's device and with the attention kernel that suits it."""
    encoder = encoder.to(session.device).eval()
    choose_attention(encoder, session.device, session.precision)
    return encoder


def encode_batch(encoder: FrozenEncoder, batch: Pixels, pooling: Pooling, session: Session) -> Tensor:
    """Features of one batch by a `prepared` encoder, on the host, as `encode` gives them."""
    distributed.advance()
    with session.autocast():
        if pooling == "class":
            return torch.cat([token.float() for token in encoder.class_tokens(batch.to(session.device))], dim=-1).cpu()
        outputs = encoder.outputs(batch.to(session.device))
    return torch.cat([pooled(tokens, pooling) for tokens in outputs], dim=-1).cpu()
