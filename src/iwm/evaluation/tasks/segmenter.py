"""A segmenter made from a world model: encoder, perhaps predictor, and one of two heads; its weights on disk.

    z_l      = tokens after block l, l at 1/3, 1/2, 2/3 and the end of the encoder
             = queries after block l of the predictor, told the null action, where there is one
    linear   y = W [z_1 .. z_4] + b                                at the patches, enlarged to pixels
    upernet  y = W UperNet(z_1 at stride 4, .. z_4 at stride 32)   of the image, whatever the patch size

Images of any size: sides that the patch does not divide are padded, positions interpolated; what is larger than a
window is looked at through windows that overlap, and their logits are averaged. `iwm segment` writes it.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.evaluation.tasks.classifier import Headed
from iwm.model import weights
from iwm.model.foreign_encoder import encoder_of
from iwm.model.vit import depths
from iwm.model.world_model import ImageWorldModel, for_tasks
from iwm.runtime import fields, sharing
from iwm.runtime.errors import UserError

HeadKind = Literal["linear", "upernet"]
STRIDES = (4, 8, 16, 32)
"""Of UperNet's four maps, px of the image."""


class LinearPixels(nn.Module):
    """A linear classifier of every patch, on the four depths side by side."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(4 * width, classes, 1)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, maps: list[Float[Tensor, "b d gh gw"]], size: tuple[int, int]
    ) -> Float[Tensor, "b c {maps[0].shape[2]} {maps[0].shape[3]}"]:
        return self.linear(torch.cat(maps, dim=1))


class UperNet(nn.Module):
    """UperNet (Xiao et al. 2018) by segmentation-models-pytorch: pyramid pooling of the deepest map, then a feature
    pyramid; logits at stride 4. A training batch needs two images or more (batch norm, over all ranks)."""

    def __init__(self, width: int, classes: int, channels: int) -> None:
        super().__init__()
        # Takes seconds to import: only for those who use it.
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        self.channels = channels
        # The two finest maps of its lists, strides 1 and 2, are not used by this decoder.
        self.decoder = UPerNetDecoder([0, 0, *(4 * [width])], encoder_depth=5, decoder_channels=channels)
        sharing.over_ranks(self.decoder)
        self.linear = nn.Conv2d(channels, classes, 1)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: list[Float[Tensor, "b d gh gw"]], size: tuple[int, int]) -> Float[Tensor, "b c qh qw"]:
        """`size`: height and width of the padded images, px."""
        pyramid = [resample(each, at_stride(size, stride)) for each, stride in zip(maps, STRIDES, strict=True)]
        return self.linear(self.decoder([None, None, *pyramid]))


def at_stride(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of a map of one cell every `stride` px."""
    return -(-size[0] // stride), -(-size[1] // stride)


def resample(maps: Float[Tensor, "b d h w"], size: tuple[int, int]) -> Float[Tensor, "b d {size[0]} {size[1]}"]:
    """Another resolution of the same extent, bilinear, averaging where it shrinks."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps.float(), size, mode="bilinear", antialias=True)


def head_of(kind: HeadKind, width: int, classes: int, channels: int) -> LinearPixels | UperNet:
    """A fresh head on features of this width."""
    return UperNet(width, classes, channels) if kind == "upernet" else LinearPixels(width, classes)


class Segmenter(Headed):
    """Images to the class logits of every pixel. `size` is the side of the windows, px."""

    def forward(self, images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Logits of images, uint8 or in [0, 1], at once, whatever their size."""
        return self.classify(self.encode(images), (images.shape[2], images.shape[3]))

    def encode(self, images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l n d"]:
        """What comes from the encoder: four depths, or the final tokens where a predictor follows."""
        numbers = [self.layer] if self.predictor else depths(self.encoder.depth)
        return torch.stack(self.encoder.intermediates(images, numbers), dim=1)

    def classify(self, features: Float[Tensor, "b l n d"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """The part after the encoder, for images of this height and width."""
        patch = self.encoder.patch_size
        grid = (-(-size[0] // patch), -(-size[1] // patch))
        padded = (grid[0] * patch, grid[1] * patch)
        layers = list(features.unbind(dim=1))
        if self.predictor is not None:
            null = features.new_zeros(features.shape[0], self.space.dim)
            numbers = depths(len(self.predictor.blocks))
            layers = self.predictor.intermediates(layers[0], null, numbers, grid=grid)
        maps = [layer.float().transpose(1, 2).unflatten(2, grid) for layer in layers]
        logits = F.interpolate(self.head(maps, padded).float(), padded, mode="bilinear")
        return logits[:, :, : size[0], : size[1]]

    @torch.no_grad()
    def slide(self, images: UInt8[Tensor, "b 3 h w"], overlap: float = 1 / 3) -> Float[Tensor, "b c h w"]:
        """Logits of images of any size through windows of `size` px, averaged where they overlap, by this share of a
        window at least. An image side shorter than a window is seen whole."""
        height, width = images.shape[2:]
        high, wide = min(self.size, height), min(self.size, width)
        total = torch.zeros(())
        windows = images.new_zeros(height, width, dtype=torch.float32)
        for top in starts(height, high, overlap):
            for left in starts(width, wide, overlap):
                logits = self(images[:, :, top : top + high, left : left + wide])
                if (high, wide) == (height, width):
                    return logits
                if not total.ndim:
                    total = logits.new_zeros(len(images), logits.shape[1], height, width)
                total[:, :, top : top + high, left : left + wide] += logits
                windows[top : top + high, left : left + wide] += 1
        return total / windows


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: evenly spread, the first at 0, the last at the end."""
    step = max(1, int(window * (1 - overlap)))
    count = -(-(side - window) // step) + 1
    return [round(number * (side - window) / max(1, count - 1)) for number in range(count)]


# ---- weights -------------------------------------------------------------------------------------------------------


def save_segmenter(segmenter: Segmenter, model: ImageWorldModel, folder: Path, **extra: Any) -> None:
    """Write `model.safetensors` and `config.json` (settings, action space, class names, head) into `folder`: all that
    `load_segmenter` needs, the encoder included."""
    head = segmenter.head
    meta = {
        "settings": fields.to_dict(model.settings),
        "actions": model.space.spec(),
        "segmenter": {
            "head": "upernet" if isinstance(head, UperNet) else "linear",
            "channels": head.channels if isinstance(head, UperNet) else 0,
            "predictor": segmenter.predictor is not None,
            "predictor_depth": segmenter.predictor.settings.depth if segmenter.predictor else 0,
            "classes": list(segmenter.names),
            "window": segmenter.size,
        },
        **extra,
    }
    weights.write_weights(folder, segmenter.state_dict(), meta)


def load_segmenter(folder: str | Path, device: str | torch.device = "cpu") -> Segmenter:
    """A trained segmenter in eval mode; `segment` says the classes of an image.

    Raises UserError when the folder holds none.
    """
    folder = Path(folder).expanduser()
    try:
        meta = weights.read_meta(folder)
        what, settings = meta["segmenter"], fields.from_dict(config.Config, meta["settings"])
        space = ActionSpace.from_spec(meta["actions"])
        encoder = encoder_of(settings.encoder, settings.data.image_size)
        predictor = None
        if what["predictor"]:
            predictor = for_tasks(settings, space.dim, encoder.grid, what.get("predictor_depth", 0))
        width = settings.predictor.width if predictor else settings.encoder.width
        head = head_of(what["head"], width, len(what["classes"]), what["channels"])
        segmenter = Segmenter(encoder, predictor, head, space, what["window"])
        segmenter.load_state_dict(weights.read_tensors(folder, meta))
    except FileNotFoundError:
        raise UserError(f"There is no trained segmenter in {folder}; `iwm segment` makes one.") from None
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The segmenter in {folder} cannot be read ({reason}); segment again.") from None
    segmenter.names = tuple(what["classes"])
    return segmenter.eval().requires_grad_(False).to(device)


def segment(segmenter: Segmenter, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, "b h w"]:
    """Class of every pixel, an index into `segmenter.names`, on the CPU."""
    return segmenter.slide(images.to(next(segmenter.parameters()).device)).argmax(dim=1).cpu()
