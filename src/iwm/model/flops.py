"""Parameters and floating-point operations of encoder and predictor, counted from their sizes.

A linear layer costs 2 x inputs x outputs per token, attention 4 x tokens^2 x width per block.
"""

from iwm.config import Config
from iwm.model.conditioning import conditioning_of


def patch_count(settings: Config) -> int:
    """Patches of an image at the training size."""
    return (settings.data.image_size // settings.encoder.patch_size) ** 2


def block_flops(tokens: int, width: int, depth: int, mlp_ratio: float, outputs: int | None = None) -> float:
    """A forward pass through `depth` blocks, the last of which gives `outputs` tokens (None: all): it takes only keys
    and values from the others."""
    outputs = tokens if outputs is None else outputs
    whole = tokens * 2 * width * width * (4 + 2 * mlp_ratio) + 4 * tokens**2 * width
    last = 2 * width * width * (2 * tokens + outputs * (2 + 2 * mlp_ratio)) + 4 * tokens * outputs * width
    return (depth - 1) * whole + last


def encoder_flops(settings: Config, tokens: int, whole: bool = False) -> float:
    """A forward pass of the encoder that keeps so many of the image's patches, up to `encoder.layer` or `whole`."""
    s = settings.encoder
    embedding = patch_count(settings) * 2 * 3 * s.patch_size**2 * s.width
    depth = s.depth if whole else s.layer if 0 < s.layer < s.depth else s.depth + min(0, s.layer + 1)
    return embedding + block_flops(tokens + s.registers, s.width, depth, s.mlp_ratio)


def student_passes(settings: Config) -> int:
    """What training the student costs in forward passes: a backward pass is two of them, a frozen one needs none."""
    return 1 if settings.encoder.train == "none" else 3


def predictor_flops(settings: Config, actions: int, context: int, queries: int, output: int) -> float:
    """A forward pass of the predictor that says `output` numbers of each query."""
    s, conditioning = settings.predictor, conditioning_of(settings.predictor, actions)
    places = patch_count(settings) if s.residual else context + queries
    outputs = places if s.residual else queries
    blocks = block_flops(places + conditioning.token_count, s.width, s.depth, s.mlp_ratio, outputs)
    linear = 2 * s.width * (context * settings.encoder.width + queries * output)
    return blocks + linear + conditioning.flops(outputs)


def block_parameters(width: int, mlp_ratio: float) -> int:
    """Parameters of one block."""
    hidden = int(width * mlp_ratio)
    return 4 * width * width + 4 * width + 2 * width * hidden + width + hidden + 4 * width


def encoder_parameters(settings: Config) -> int:
    """Parameters of the encoder."""
    s = settings.encoder
    embedding = (3 * s.patch_size**2 + 1) * s.width + (patch_count(settings) + s.registers) * s.width
    return embedding + s.depth * block_parameters(s.width, s.mlp_ratio) + 2 * s.width


def predictor_parameters(settings: Config, actions: int, output: int) -> int:
    """Parameters of the predictor that says `output` numbers of each query."""
    s, d = settings.predictor, settings.encoder.width
    w = s.width
    plain = (d + 1) * w + w + s.depth * block_parameters(w, s.mlp_ratio) + 2 * w + (w + 1) * output
    return plain + conditioning_of(s, actions).parameter_count()
