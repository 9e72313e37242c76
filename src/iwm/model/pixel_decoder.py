"""The pixel decoder: tokens in target space -> pixels, so that a prediction can be looked at.

    patch = W z + b + V gelu(U z + c)          z: a token as `predict` and `target` give it; patch: its pixels in [0, 1]

W and b are ridge regression in closed form. The second part is learned on top where it pays, which is where patches are
coarse: more numbers than a token has. Every token is decoded alone, so the decoder works on any grid and can show
nothing but what its token says. It is fitted when everything else is finished, to targets only: it never sees a
prediction.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iwm.model.objectives.pixels import images_of
from iwm.model.vit import Grid
from iwm.runtime import files
from iwm.runtime.algebra import RidgeSums, cosine, standardisation
from iwm.runtime.errors import UserError
from iwm.runtime.tensors import save_file

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Strengths of ridge regression that are tried first (`RidgeSums.choose`)."""
HIDDEN, STEPS, BATCH, RATE, DECAY = 384, 1200, 512, 2e-3, 0.05
"""The learned part: its width, and the AdamW steps (tokens a step, first learning rate, weight decay) that fit it."""
KEPT = 2**16
"""Most tokens that the learned part is fitted to; ridge regression sees all."""
GAIN = 0.95
"""Share of the squared error at which the learned part is kept: 0.2 dB."""


@dataclass(frozen=True)
class PixelDecoder:
    """Weights of a decoder; d numbers a token, k = 3 patch_size^2 numbers a patch (see `patches_of`)."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    inner_weight: Float[Tensor, "h d"] | None = None
    inner_bias: Float[Tensor, " h"] | None = None
    outer_weight: Float[Tensor, "k h"] | None = None

    @property
    def patch_size(self) -> int:
        return math.isqrt(len(self.bias) // 3)

    @property
    def head(self) -> str:
        return "linear" if self.inner_weight is None else "mlp"

    def __call__(self, tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b 3 h w"]:
        """Pictures of tokens on a grid, in float32 whatever the caller's autocast; not clipped to [0, 1]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return images_of(self.patches(tokens.float()), grid, self.patch_size)

    def patches(self, tokens: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """The pixels of every token's patch."""
        patches = F.linear(tokens, self.weight, self.bias)
        if self.inner_weight is None or self.outer_weight is None:
            return patches
        return patches + F.linear(F.gelu(F.linear(tokens, self.inner_weight, self.inner_bias)), self.outer_weight)

    def to(self, device: torch.device | str) -> "PixelDecoder":
        return PixelDecoder(**{name: value.to(device) for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def write(self, path: Path, identity: str, dtype: torch.dtype = torch.float32) -> None:
        """Write the decoder of the weights with this content hash, whole or not at all."""
        with files.replacing(path) as part:
            tensors = {name: value.to("cpu", dtype).contiguous() for name, value in self._tensors().items()}
            save_file(tensors, part, metadata={"weights": identity})


def read(path: Path) -> tuple[PixelDecoder, str]:
    """A decoder in fp32, and the content hash of the weights that it belongs to.

    Raises UserError when the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            decoder = PixelDecoder(**{name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
            return decoder, (file.metadata() or {}).get("weights", "")
    except (OSError, SafetensorError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The pixel decoder {path} cannot be read ({reason}); fit it again with iwm decoder.") from None


# ---- fitting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Targets of some images of the training split, and their pixels."""

    tokens: Float[Tensor, "b n d"]
    patches: Float[Tensor, "b n k"]
    held: bool
    """Whether they are of the tenth that strength and head are chosen by, not learned from."""


def fit(batches: Iterable[Batch], head: str, seed: int) -> tuple[PixelDecoder, Mapping[str, float]]:
    """A decoder, and the mean squared error of every head that was tried on the images that are held.

    `head` is "linear", "mlp" (with the learned part) or "auto": the learned part is tried where a patch has more
    numbers than a token, and kept where it takes off 0.2 dB. At least one batch must be held and one not.
    """
    sums: dict[bool, RidgeSums] = {}
    kept = {held: _Sample(KEPT, seed) for held in (False, True)}
    coarse = False
    for batch in batches:
        tokens, patches = batch.tokens.float().flatten(0, 1), batch.patches.float().flatten(0, 1)
        width, outputs = tokens.shape[1], patches.shape[1]
        coarse = head == "mlp" or (head == "auto" and outputs > width)
        sums.setdefault(batch.held, RidgeSums(width, outputs, tokens.device)).add(tokens, patches)
        if coarse:
            kept[batch.held].add(tokens, patches)
    weight, bias = sums[False].choose(sums[True], STRENGTHS)
    linear = PixelDecoder(weight.T.float().contiguous(), bias.float())
    errors = {"linear": sums[True].error(weight, bias)}
    if not coarse:
        return linear, errors
    learned = _learn(linear, kept[False], seed)
    with torch.no_grad():
        differences = (decoder.patches(kept[True].tokens) - kept[True].patches for decoder in (learned, linear))
        error, before = (float(difference.square().mean()) for difference in differences)
    errors["mlp"] = errors["linear"] * error / before
    return (learned if head == "mlp" or error < GAIN * before else linear), errors


class _Sample:
    """A seeded draw without repetition of up to `size` rows among all that are added."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0)
        self.tokens, self.patches = torch.empty(0), torch.empty(0)

    def add(self, tokens: Float[Tensor, "n d"], patches: Float[Tensor, "n k"]) -> None:
        keys = torch.rand(len(tokens), generator=self.generator)
        if len(self.keys):
            keys = torch.cat([self.keys, keys])
            tokens, patches = torch.cat([self.tokens, tokens]), torch.cat([self.patches, patches])
        rows = keys.argsort()[: self.size]
        self.keys = keys[rows]
        self.tokens, self.patches = (values[rows.to(values.device)] for values in (tokens, patches))


def _learn(linear: PixelDecoder, lessons: _Sample, seed: int) -> PixelDecoder:
    """The learned part, fitted to what the linear one leaves."""
    device, width = lessons.tokens.device, lessons.tokens.shape[1]
    generator = torch.Generator().manual_seed(seed)
    # Tokens of target space may have any scale; inside they are standardised, afterwards the scale is folded in.
    mean, deviation = standardisation(lessons.tokens)
    inner_weight = torch.randn(HIDDEN, width, generator=generator).div_(math.sqrt(width)).to(device)
    inner_bias, outer_weight = torch.zeros(HIDDEN, device=device), lessons.patches.new_zeros(len(linear.bias), HIDDEN)
    parts = [part.requires_grad_(True) for part in (inner_weight, inner_bias, outer_weight)]
    optimiser = torch.optim.AdamW(parts, RATE, weight_decay=DECAY)
    rest = lessons.patches - linear.patches(lessons.tokens)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for step in range(STEPS):
            rows = torch.randint(len(rest), (BATCH,), generator=generator).to(device)
            inputs = (lessons.tokens[rows] - mean) / deviation
            guess = F.linear(F.gelu(F.linear(inputs, inner_weight, inner_bias)), outer_weight)
            loss = (guess - rest[rows]).square().mean()
            optimiser.param_groups[0]["lr"] = cosine(RATE, 0.0, math.pi * step / STEPS)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    inner_weight, inner_bias, outer_weight = (part.detach() for part in parts)
    scaled = inner_weight / deviation
    return replace(linear, inner_weight=scaled, inner_bias=inner_bias - scaled @ mean, outer_weight=outer_weight)
