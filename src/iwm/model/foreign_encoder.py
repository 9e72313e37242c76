"""An encoder of others: any timm model with `forward_intermediates`, as it is, inside a world model.

    z_l = patch tokens after block l      class and register tokens take part inside, and are left out here

Its weights, positions and rotary embeddings stay timm's, so its state dict below `body.` is the model's own. The
tokens of block `layer` are what the world model sees and predicts: the last block's after the model's final norm, an
earlier one's after a LayerNorm without affine.

One that is trained sees only the kept patches where timm's model has a place for that (its patch dropout: vision
transformers and Eva); one that stands still sees the whole image, and so does any other model: then tokens are left
out behind it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from iwm import config
from iwm.model import architecture
from iwm.model.encoder import Encoder, PatchEncoder, require_whole_patches
from iwm.model.vit import gather_tokens
from iwm.runtime.errors import UserError


class TokenSelection(nn.Module):
    """In the place of timm's patch dropout: the patches of `keep`, behind the class and register tokens."""

    keep: Tensor | None = None

    def __init__(self, prefix: int, with_indices: bool) -> None:
        super().__init__()
        self.prefix, self.with_indices = prefix, with_indices

    def forward(self, x: Float[Tensor, "b m d"]) -> Any:
        """The tokens; for Eva also which were kept, so that rotary positions follow."""
        if self.keep is not None:
            x = torch.cat([x[:, : self.prefix], gather_tokens(x[:, self.prefix :], self.keep)], dim=1)
        return (x, self.keep) if self.with_indices else x


class ForeignEncoder(PatchEncoder):
    """An encoder of others; `settings.architecture` says which (`iwm.model.architecture.described`).

    Its weights are drawn anew until somebody loads them. Raises UserError when the patches do not divide the image.
    """

    def __init__(self, settings: config.Encoder, image_size: int) -> None:
        super().__init__()
        require_whole_patches(settings.patch_size, image_size)
        self.settings, self.patch_size, self.depth = settings, settings.patch_size, settings.depth
        self.layer = architecture.layer_number(settings.layer, settings.depth)
        side = image_size // settings.patch_size
        self.grid = (side, side)
        self.body: Any = architecture.timm_body(settings.architecture, image_size)
        self.layout: architecture.Layout = architecture.layout_of(self.body)
        self.set_statistics()
        self.selection: TokenSelection | None = None
        if isinstance(self.body, VisionTransformer | Eva) and self.trained:
            self.selection = TokenSelection(self.body.num_prefix_tokens, isinstance(self.body, Eva))
            setattr(self.body, "patch_drop", self.selection)  # noqa: B010 - another kind of module than timm's own
        self.requires_grad_(False)
        for part in self.trained_parts():
            part.requires_grad_(True)

    @property
    def trained(self) -> bool:
        return self.settings.train != "none"

    def trained_parts(self) -> list[nn.Module | nn.Parameter]:
        """What `encoder.train` lets learn up to block `layer`. Raises UserError for more blocks than are."""
        if not self.trained:
            return []
        count = architecture.last_blocks(self.settings.train)
        if count is None:
            after = {id(p) for part in self.behind for p in part.parameters()}
            return [p for p in self.body.parameters() if id(p) not in after]
        if count > self.layer:
            raise UserError(
                f"encoder.train {self.settings.train} asks for more than the {self.layer} blocks up to encoder.layer; "
                f"give at most last-{self.layer}."
            )
        norm = [self.final_norm] if self.final_norm is not None and self.layer == self.depth else []
        return [*self.stack[self.layer - count : self.layer], *norm]

    def train(self, mode: bool = True) -> "ForeignEncoder":
        """Training mode, except for what keeps running statistics; none at all for one that stands still."""
        super().train(mode and self.trained)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                module.eval()
        return self

    @property
    def stack(self) -> list[nn.Module]:
        return architecture.blocks_of(self.body)

    @property
    def timm_model(self) -> nn.Module:
        return self.body

    @property
    def beneath(self) -> list[nn.Module | nn.Parameter]:
        norm = [] if self.final_norm is None else [self.final_norm]
        above = {id(p) for part in [*self.stack, *norm] for p in part.parameters()}
        return [p for p in self.body.parameters() if id(p) not in above]

    @property
    def final_norm(self) -> nn.Module | None:
        norm = getattr(self.body, "norm", None)
        return norm if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) else None

    @property
    def alike(self) -> list[int]:
        # Stages of maps grow coarser on the way up.
        return list(range(1, self.depth + 1)) if self.layout == "NLC" else [self.layer]

    def _outputs(
        self,
        images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        numbers: Sequence[int],
        keep: Int64[Tensor, "b k"] | None = None,
    ) -> list[Float[Tensor, "b k d"]]:
        """Patch tokens after the blocks of these numbers (rising), as timm gives them."""
        pixels, selection = self.normalise(images), self.selection
        early = selection is not None and keep is not None
        if early:
            cast(TokenSelection, selection).keep = keep
        try:
            outputs = architecture.block_tokens(self.body, pixels, numbers, self.layout)
        finally:
            if selection is not None:
                selection.keep = None
        expected = keep.shape[1] if early and keep is not None else pixels.shape[-2] * pixels.shape[-1]
        expected = expected if early else expected // self.patch_size**2
        for number, output in zip(numbers, outputs, strict=True):
            if output.shape[1:] != (expected, self.settings.width):
                raise UserError(
                    f"Block {number} of {self.settings.name} gives {output.shape[1]} tokens of {output.shape[2]} "
                    f"numbers, block {self.layer} {expected} of {self.settings.width}; what takes several blocks needs "
                    "an encoder whose blocks are alike."
                )
        return outputs if early else [gather_tokens(output, keep) for output in outputs]


def encoder_of(settings: config.Encoder, image_size: int) -> PatchEncoder:
    """The encoder that the settings name: ours, or one of others with weights drawn anew."""
    return ForeignEncoder(settings, image_size) if settings.name else Encoder(settings, image_size)


def stands_still(settings: config.Encoder) -> bool:
    """Whether it is an encoder of others of which nothing is trained: student and teacher are then the same."""
    return bool(settings.name) and settings.train == "none"
