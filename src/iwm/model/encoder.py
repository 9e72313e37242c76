"""The encoder f: what every encoder offers, and ours, a timm VisionTransformer without class token that can drop tokens
before block 0. Encoders of others: `iwm.model.foreign_encoder`.

With `encoder.registers` R, learned tokens r without position join the patches (Darcet et al. 2024): blocks([r ; x]).
They are never dropped, and all that comes out are the patches' tokens.

Positions are fixed (frozen) 2-D sin-cos vectors kept in `pos_embed`, resampled for other grids; mean and standard
deviation of the pixels are part of the module but not of its state dict, which *is* a timm state dict.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from iwm import config
from iwm.model.architecture import layer_number
from iwm.model.vit import (
    Grid,
    gather_tokens,
    initialise,
    patch_product,
    rescale_residuals,
    sincos_positions,
    without_affine,
)
from iwm.runtime.errors import UserError

SLACK = 0.25
"""How far a float pixel may lie outside [0, 1]: bicubic resizing overshoots."""


def checked_pixels(images: Tensor) -> Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]:
    """Images as an encoder takes them, any floats as float32. Raises UserError for another type, shape or scale."""
    wanted = "give a tensor [b, 3, h, w] of uint8, or of floats in [0, 1]"
    if not isinstance(images, Tensor):
        raise UserError(f"Images are a {type(images).__name__}; {wanted} (torch.from_numpy(array).movedim(-1, 1)).")
    shape = list(images.shape)
    if images.ndim != 4:
        raise UserError(f"Images are {shape}; {wanted} (images[None] for a single one).")
    if images.shape[1] != 3:
        mend = ""
        if images.shape[1] == 1:
            mend = " (images.expand(-1, 3, -1, -1) for grey ones)"
        elif images.shape[3] in (1, 3, 4):
            mend = " (images.movedim(-1, 1) puts the channels first)"
        raise UserError(f"Images are {shape}, of {images.shape[1]} channels; {wanted}{mend}.")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"Images are {images.dtype}; {wanted} (images.to(torch.uint8) for whole numbers 0..255).")
    if images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -SLACK and high <= 1 + SLACK):  # also for NaN
            mend = "images / 255" if low >= 0 and high <= 255 else "scale them, and leave out mean and deviation"
            raise UserError(f"Images are floats from {low:.3g} to {high:.3g}; {wanted} ({mend}).")
    return images if images.dtype == torch.float32 else images.float()


class PatchEncoder(nn.Module):
    """Images to the tokens of their patches: what a world model, and every task, asks of an encoder.

    `grid` is the patch grid at the training size, `depth` the number of blocks, `layer` the one whose tokens the world
    model sees and predicts.
    """

    settings: config.Encoder
    patch_size: int
    grid: Grid
    depth: int
    layer: int
    mean: Tensor
    std: Tensor

    if TYPE_CHECKING:  # what one kind has beyond these

        def __getattr__(self, name: str) -> Any: ...

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks, in their order."""
        raise NotImplementedError

    @property
    def timm_model(self) -> nn.Module:
        """What timm's own functions (layer decay, say) take."""
        raise NotImplementedError

    @property
    def beneath(self) -> list[nn.Module | nn.Parameter]:
        """What lies before the first block."""
        raise NotImplementedError

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm behind the last block."""
        raise NotImplementedError

    @property
    def behind(self) -> list[nn.Module]:
        """What lies behind block `layer`, the final norm too: nothing where that is the last block."""
        norm = [] if self.final_norm is None else [self.final_norm]
        return [] if self.layer == self.depth else [*self.stack[self.layer :], *norm]

    @property
    def alike(self) -> list[int]:
        """The numbers of the blocks that are known to give tokens as block `layer` does."""
        return list(range(1, self.depth + 1))

    def set_statistics(self) -> None:
        """Make mean and deviation of the pixels part of the module, not of its state."""
        for stat in ("mean", "std"):
            values = torch.tensor(getattr(self.settings, stat)).view(1, 3, 1, 1)
            self.register_buffer(stat, values, persistent=False)

    def grid_of(self, images: Tensor) -> Grid:
        """Patch grid of these images, sides rounded up to whole patches."""
        height, width = images.shape[-2:]
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def normalise(self, images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Pixels (uint8, or float in [0, 1]) to zero mean and unit deviation; sides that the patch does not divide
        are padded with the mean colour on the right and below."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = (images - self.mean) / self.std
        height, width = images.shape[-2:]
        patch = self.patch_size
        if height % patch or width % patch:
            images = F.pad(images, (0, -width % patch, 0, -height % patch))
        return images

    def tokens(
        self,
        images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        keep: Int64[Tensor, "b k"] | None = None,
        average: int = 1,
    ) -> Float[Tensor, "b k d"]:
        """Tokens of the kept patches (None: all) after block `layer`.

        `average` = 1 gives them as `intermediates` does; more, the mean over the last `average` blocks' outputs up to
        that one, each LayerNormed without affine (data2vec).
        """
        if average == 1:
            (x,) = self._outputs(images, [self.layer], keep)
            return self._normed(x, self.layer)
        outputs = self._outputs(images, range(self.layer - average + 1, self.layer + 1), keep)
        return sum((without_affine(x.float()) for x in outputs), start=self.mean.new_zeros(())) / average

    def tokens_and_last(
        self, images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"], keep: Int64[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k d"]]:
        """`tokens`, and those of the last block after the final norm, in one pass."""
        outputs = self._outputs(images, sorted({self.layer, self.depth}), keep)
        return self._normed(outputs[0], self.layer), self._normed(outputs[-1], self.depth)

    def intermediates(
        self,
        images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        numbers: Sequence[int],
        affine: bool | Sequence[bool] = True,
    ) -> list[Float[Tensor, "b n d"]]:
        """Tokens of all patches after the blocks of these numbers, from 1: the last block's after the final norm, an
        earlier one's, and without `affine` (of all, or of each) the last one's too, after a LayerNorm without
        affine."""
        unique = sorted(set(numbers))
        outputs = dict(zip(unique, self._outputs(images, unique), strict=True))
        each = [affine] * len(numbers) if isinstance(affine, bool) else affine
        return [self._normed(outputs[number], number, own) for number, own in zip(numbers, each, strict=True)]

    def _outputs(
        self,
        images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        numbers: Sequence[int],
        keep: Int64[Tensor, "b k"] | None = None,
    ) -> list[Float[Tensor, "b k d"]]:
        """Tokens of the kept patches as they leave the blocks of these numbers (rising)."""
        raise NotImplementedError

    def _normed(self, x: Float[Tensor, "b k d"], number: int, affine: bool = True) -> Float[Tensor, "b k d"]:
        """What block `number` gave, normed."""
        norm = self.final_norm if affine and number == self.depth else None
        return without_affine(x) if norm is None else norm(x)


def require_whole_patches(patch: int, image_size: int) -> None:
    """Raises UserError when the image size is smaller than a patch or not divisible by it."""
    if image_size < patch or image_size % patch:
        raise UserError(
            f"Images of {image_size} px do not divide into patches of {patch} px; choose a size that is a multiple of "
            f"{patch}, or train with another encoder.patch_size."
        )


class Encoder(PatchEncoder, VisionTransformer):
    """Our vision transformer over the kept patches of an image, and `settings.registers` tokens of its own.

    Raises UserError when the image size is smaller than a patch or not divisible by it.
    """

    def __init__(self, settings: config.Encoder, image_size: int) -> None:
        patch = settings.patch_size
        require_whole_patches(patch, image_size)
        if settings.width % settings.heads or settings.width % 4:
            raise UserError(
                f"encoder.width {settings.width} must be a multiple of 4 and of encoder.heads ({settings.heads})."
            )
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            num_classes=0,
            global_pool="avg",
            class_token=False,
            reg_tokens=settings.registers,
            no_embed_class=True,
            fc_norm=False,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            mlp_ratio=settings.mlp_ratio,
            dynamic_img_size=True,
            weight_init="skip",
        )
        self.settings = settings
        self.patch_size = patch
        self.depth, self.layer = settings.depth, layer_number(settings.layer, settings.depth)
        self.set_statistics()
        initialise(self, settings.init)
        rescale_residuals(self.blocks)
        assert isinstance(self.pos_embed, nn.Parameter)
        self.pos_embed.requires_grad_(False)
        self.pos_embed.copy_(sincos_positions(self.grid, settings.width))
        if self.reg_token is not None:
            nn.init.trunc_normal_(self.reg_token, std=0.02)

    @property
    def grid(self) -> Grid:  # pyright: ignore[reportIncompatibleVariableOverride]
        size = self.patch_embed.grid_size
        assert size is not None
        return size[0], size[1]

    @property
    def stack(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def final_norm(self) -> nn.Module:
        return self.norm

    @property
    def timm_model(self) -> nn.Module:
        return self

    @property
    def beneath(self) -> list[nn.Module | nn.Parameter]:
        return [self.patch_embed, *([] if self.reg_token is None else [self.reg_token])]

    def _patches(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b r c d"]:
        """The patch convolution; on a GPU as the matrix product it is, for cuDNN's convolution of patches as large as
        its stride took 7 times as long in bf16 (ViT-S/16, 256 images, H100: 1.8 against 0.3 ms)."""
        if images.device.type != "cuda":
            return self.patch_embed(images)
        projection = self.patch_embed.proj
        assert isinstance(projection, nn.Conv2d)
        return patch_product(images, projection)

    def embed(
        self, images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"], keep: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Registers and patch embeddings with positions, only the kept ones: the input of block 0."""
        tokens = self._patches(self.normalise(images))
        grid = (tokens.shape[1], tokens.shape[2])
        positions = self.pos_embed
        assert positions is not None
        if grid != self.grid:
            positions = resample_abs_pos_embed(positions, list(grid), list(self.grid), num_prefix_tokens=0)
        patches = gather_tokens(tokens.flatten(1, 2) + positions, keep)
        if self.reg_token is None:
            return patches
        registers = self.reg_token.expand(patches.shape[0], -1, -1)  # len() would fix the batch of an exported graph
        return torch.cat([registers, patches], dim=1)

    def _outputs(
        self,
        images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        numbers: Sequence[int],
        keep: Int64[Tensor, "b k"] | None = None,
    ) -> list[Float[Tensor, "b k d"]]:
        x, outputs = self.norm_pre(self.embed(images, keep)), []
        for number, block in enumerate(self.blocks[: max(numbers)], start=1):
            x = block(x)
            if number in numbers:
                outputs.append(x if self.reg_token is None else x[:, self.num_prefix_tokens :])
        return outputs
