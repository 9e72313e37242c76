"""A classifier made from a world model: encoder, perhaps predictor, and one of two heads; its weights on disk.

    attentive:  q' = q + Attention(q, LN(z));  y = W (q' + MLP(LN(q')))      one learned query q (V-JEPA's probe)
    mean:       y = W mean_i z_i
    z = f(x), or p(f(x), a = 0) at all positions where there is a predictor

`iwm finetune` writes it, `iwm predict` reads it.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from iwm import checkpoint, config, hardware
from iwm.actions import ActionSpace
from iwm.config import Speed
from iwm.encoder import Encoder
from iwm.errors import UserError
from iwm.evaluation.fitting import logits_of
from iwm.model import ImageWorldModel
from iwm.predictor import Predictor
from iwm.vit import head_count, initialise

FORMAT = 1


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens, then a linear classifier (Bardes et al. 2024; paper appendix).

    Has 11 d^2 + 13 d + d c + c parameters for c classes at `mlp_ratio` 4, and head width 32 where d allows.
    """

    def __init__(self, width: int, classes: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = head_count(width)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.linear = nn.Linear(width, classes)
        initialise(self, "xavier")
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)

    def pool(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The query after the block: one vector an image."""
        batch, count, width = tokens.shape
        split = (self.heads, width // self.heads)
        query = self.q(self.query).expand(batch, -1, -1).unflatten(-1, split).transpose(1, 2)
        key, value = self.kv(self.norm1(tokens)).view(batch, count, 2, *split).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        pooled = self.query + attended.transpose(1, 2).flatten(2)
        return (pooled + self.mlp(self.norm2(pooled)))[:, 0]

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        return self.linear(self.pool(tokens))


class MeanHead(nn.Module):
    """A linear classifier on the mean token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        return self.linear(tokens.mean(dim=1))


class Headed(nn.Module):
    """Encoder, perhaps predictor, and a head: what finetuning trains for a task."""

    def __init__(self, encoder: Encoder, predictor: Predictor | None, head: nn.Module, actions: int, size: int) -> None:
        super().__init__()
        self.encoder, self.predictor, self.head = encoder, predictor, head
        self.actions, self.size = actions, size
        self.names: tuple[str, ...] = ()
        """Class names, in the order of the logits."""


class Classifier(Headed):
    """Images to class logits."""

    def __init__(self, encoder: Encoder, predictor: Predictor | None, head: nn.Module, actions: int, size: int) -> None:
        super().__init__(encoder, predictor, head, actions, size)
        side = -(-size // encoder.patch_size)
        self.grid = (side, side)

    def forward(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b c"]:
        return self.classify(self.encoder.tokens(images))

    def classify(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b c"]:
        """The part after the encoder; the predictor is asked for all positions under the null action."""
        if self.predictor is not None:
            null = tokens.new_zeros(len(tokens), self.actions)
            tokens = self.predictor(tokens, null, grid=self.grid)
        return self.head(tokens.float())


# ---- weights -------------------------------------------------------------------------------------------------------


def save_classifier(classifier: Classifier, model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write `model.safetensors` and `config.json` (settings, action space, class names, head) into `folder`: all that
    `load_classifier` needs, the encoder included."""
    meta = {
        "settings": config.to_dict(model.settings),
        "actions": model.space.spec(),
        "classifier": {
            "head": "attentive" if isinstance(classifier.head, AttentiveHead) else "mean",
            "predictor": classifier.predictor is not None,
            "classes": list(classifier.names),
            "image_size": classifier.size,
        },
        **extra,
    }
    checkpoint.write_weights(folder, classifier.state_dict(), meta)


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """A finetuned classifier in eval mode; uint8 images [b, 3, size, size] in, logits in the order of `names` out.

    Raises UserError when the folder holds none.
    """
    folder = Path(folder).expanduser()
    try:
        meta = json.loads((folder / "config.json").read_text())
        what, settings = meta["classifier"], config.from_dict(config.Config, meta["settings"])
        space = ActionSpace.from_spec(meta["actions"])
        encoder = Encoder(settings.encoder, settings.data.image_size)
        width, count = settings.encoder.width, len(what["classes"])
        predictor = Predictor(settings.predictor, width, space.dim, encoder.grid) if what["predictor"] else None
        head = AttentiveHead(width, count) if what["head"] == "attentive" else MeanHead(width, count)
        classifier = Classifier(encoder, predictor, head, space.dim, what["image_size"])
        classifier.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError:
        raise UserError(f"There is no finetuned classifier in {folder}; `iwm finetune` makes one.") from None
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The classifier in {folder} cannot be read ({reason}); finetune again.") from None
    classifier.names = tuple(what["classes"])
    return classifier.eval().requires_grad_(False).to(device)


def predict(
    classifier: Classifier, images: UInt8[Tensor, "n 3 s s"], speed: Speed | None = None
) -> Float[Tensor, "n c"]:
    """Class probabilities of decoded images."""
    speed = speed or Speed()
    device = hardware.device_of(speed)
    precision = hardware.precision_of(speed, device)
    return logits_of(classifier.to(device), images, device=device, precision=precision).softmax(dim=1)
