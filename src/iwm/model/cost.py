"""What a configuration costs: parameters and floating-point operations, counted from its sizes.

A linear layer costs 2 x inputs x outputs per token, attention 4 x tokens^2 x width per block; a backward pass twice
the forward. Counted are the needed operations only: context tokens through the student (forward and backward), all
patches through the teacher (forward), context and queries through the predictor (forward and backward). Pixels have no
teacher; a joint embedding sends two views through student, teacher and the MLPs that compare them.
"""

import math
from dataclasses import dataclass

from iwm.config import Config
from iwm.model.masks import dropped_count, query_count

ACTIONS = 7
"""Components of the photometric action."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and FLOPs of one image."""

    encoder_parameters: int
    predictor_parameters: int
    """Of a joint embedding: of the projector and its predictor MLP."""
    encode_flops: float
    """One image through the encoder, all patches."""
    train_flops: float
    """One image's share of a training step."""


def _blocks(tokens: int, width: int, depth: int, mlp_ratio: float, asked: int | None = None) -> float:
    """The last block says something of `asked` tokens (None: all), the others only lend it keys and values."""
    asked = tokens if asked is None else asked
    whole = tokens * 2 * width * width * (4 + 2 * mlp_ratio) + 4 * tokens**2 * width
    last = 2 * width * width * (2 * tokens + asked * (2 + 2 * mlp_ratio)) + 4 * tokens * asked * width
    return (depth - 1) * whole + last


def cost(settings: Config) -> Cost:
    """Count from the sizes alone; no weights are made."""
    encoder, predictor, kind = settings.encoder, settings.predictor, settings.objective.kind
    side = settings.data.image_size // encoder.patch_size
    patches = side * side
    trained = 1 if settings.optim.freeze_encoder else 3

    def encode(tokens: int) -> float:
        embedding = patches * 2 * 3 * encoder.patch_size**2 * encoder.width
        return embedding + _blocks(tokens, encoder.width, encoder.depth, encoder.mlp_ratio)

    if kind == "joint":
        projector, mlp = (2 * sum(map(math.prod, layers)) for layers in _joint_layers(settings))
        step = 2 * ((1 + trained) * encode(patches) + 4 * projector + 3 * mlp)
        return Cost(_encoder_parameters(settings), _joint_parameters(settings), encode(patches), step)

    dropped = dropped_count(settings.masks, (side, side))
    context = patches - dropped
    positions = {"dropped": dropped, "all": patches, "visible": context}[settings.masks.predict]
    queries = query_count(settings.masks, positions)
    extra = ACTIONS if predictor.conditioning == "sequence" else 0

    def ask(context: int) -> float:
        """The student and the predictor, forward and backward, on so many tokens of context."""
        tokens = context + queries + extra
        predict = _blocks(tokens, predictor.width, predictor.depth, predictor.mlp_ratio, queries)
        predict += 2 * predictor.width * (context * encoder.width + queries * _said(settings))
        if predictor.conditioning == "feature":
            predict += queries * 2 * predictor.width * (3 * predictor.width + ACTIONS)
        if predictor.conditioning == "adaln":
            predict += predictor.depth * 2 * 6 * predictor.width**2 + 2 * predictor.width * (predictor.width + ACTIONS)
        return trained * encode(context) + 3 * predict

    teacher = encode(patches) if kind == "latent" else 0.0
    whole = settings.masks.whole
    return Cost(
        _encoder_parameters(settings),
        _predictor_parameters(settings),
        encode(patches),
        teacher + (1 - whole) * ask(context) + whole * ask(patches),
    )


def _said(settings: Config) -> int:
    """Numbers the predictor says of a patch."""
    of_pixels = settings.objective.kind == "pixels"
    return 3 * settings.encoder.patch_size**2 if of_pixels else settings.encoder.width


Layers = list[tuple[int, int]]
"""(inputs, outputs) of linear layers."""


def _joint_layers(settings: Config) -> tuple[Layers, Layers]:
    """Those of a joint embedding's projector and of its predictor MLP."""
    s = settings.objective
    hidden, dim = s.projector_width, s.projector_dim
    middle = [(hidden, hidden)] if s.invariance == "contrastive" else []
    return [(settings.encoder.width, hidden), *middle, (hidden, dim)], [(dim, hidden), (hidden, dim)]


def _joint_parameters(settings: Config) -> int:
    """Weights, affines of the inner BatchNorms, and the last layers' biases where no BatchNorm follows them."""
    s, (projector, mlp) = settings.objective, _joint_layers(settings)
    affine = 2 * s.projector_width * (len(projector) + len(mlp) - 2)
    biases = 0 if s.invariance == "contrastive" else 2 * s.projector_dim
    return sum(map(math.prod, projector + mlp)) + affine + biases


def _block_parameters(width: int, mlp_ratio: float) -> int:
    hidden = int(width * mlp_ratio)
    return 4 * width * width + 4 * width + 2 * width * hidden + width + hidden + 4 * width


def _encoder_parameters(settings: Config) -> int:
    s = settings.encoder
    patches = (settings.data.image_size // s.patch_size) ** 2
    embedding = (3 * s.patch_size**2 + 1) * s.width + patches * s.width
    return embedding + s.depth * _block_parameters(s.width, s.mlp_ratio) + 2 * s.width


def _predictor_parameters(settings: Config) -> int:
    s, d, k = settings.predictor, settings.encoder.width, ACTIONS
    w = s.width
    total = (d + 1) * w + w + s.depth * _block_parameters(w, s.mlp_ratio) + 2 * w + (w + 1) * _said(settings)
    conditioning = {
        "none": 0,
        "sequence": 2 * k * w,
        "feature": (w + k + 1) * w + 2 * (w + 1) * w,
        "adaln": (k + 1) * w + (w + 1) * w + s.depth * (w + 1) * 6 * w,
    }
    return total + conditioning[s.conditioning]
