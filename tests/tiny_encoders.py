"""Encoders of others in miniature, one of each kind, under names that timm knows: 3 blocks of 32, random weights."""

from typing import Any

import timm
from timm.models import register_model

_SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}


def _make(name: str, own: dict[str, Any], options: dict[str, Any]) -> Any:
    left_out = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return timm.create_model(
        name, **{**_SMALL, **own, **{key: value for key, value in options.items() if key not in left_out}}
    )


@register_model
def tiny_plain(**options: Any) -> Any:
    own = {"patch_size": 8, "img_size": 32, "class_token": False, "global_pool": "avg", "fc_norm": False}
    return _make("vit_tiny_patch16_224", own, options)


@register_model
def tiny_class_token(**options: Any) -> Any:
    return _make("vit_tiny_patch16_224", {"patch_size": 8, "img_size": 48}, options)


@register_model
def tiny_registers(**options: Any) -> Any:
    """DINOv2's: registers, LayerScale, positions of the patches alone."""
    return _make("vit_small_patch14_reg4_dinov2", {"patch_size": 8, "img_size": 48, "init_values": 0.5}, options)


@register_model
def tiny_dinov3(**options: Any) -> Any:
    """Eva's kind: rotary positions, registers."""
    return _make("vit_small_patch16_dinov3", {"patch_size": 8, "img_size": 32, "init_values": 0.5}, options)


@register_model
def tiny_siglip(**options: Any) -> Any:
    """No class token, attention pooling behind the features."""
    return _make("vit_base_patch16_siglip_224", {"patch_size": 8, "img_size": 32}, options)


@register_model
def tiny_hybrid(**options: Any) -> Any:
    """A convolutional stem."""
    return _make("vit_tiny_r_s16_p8_224", {"img_size": 128}, options)


SIZES = {
    "tiny_plain": 32,
    "tiny_class_token": 32,
    "tiny_registers": 32,
    "tiny_dinov3": 32,
    "tiny_siglip": 32,
    "tiny_hybrid": 128,
}
"""Every kind with an image side of 4 x 4 patches."""
