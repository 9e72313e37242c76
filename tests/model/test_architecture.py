from typing import Any

import pytest
import timm
import torch

from iwm import config
from iwm.model import architecture
from iwm.runtime.errors import UserError


def test_an_architecture_is_written_with_its_arguments_and_read_again():
    name, arguments = "vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 32}
    assert architecture.parsed(architecture.written(name, arguments)) == (name, arguments)
    assert architecture.parsed(architecture.written(name, {})) == (name, {})


def test_sizes_are_those_of_the_arguments_and_the_hub_tells_the_pixels():
    text = architecture.written("vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 32, "num_heads": 4})
    settings = architecture.described(config.Encoder(name="x"), text, {"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3})
    assert (settings.patch_size, settings.width, settings.depth, settings.heads) == (16, 32, 2, 4)
    assert (settings.mean, settings.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert settings.architecture == text


def test_layers_are_numbered_from_both_ends():
    assert [architecture.layer_number(layer, 12) for layer in (0, -1, 12, 1, -12)] == [12, 12, 12, 1, 1]
    for layer in (13, -13):
        with pytest.raises(UserError, match=f"no layer {layer}"):
            architecture.layer_number(layer, 12)


@torch.no_grad()
def test_maps_are_read_row_by_row():
    body: Any = timm.create_model("test_convnext", num_classes=0).eval()
    images = torch.rand(2, 3, 96, 64)
    tokens = architecture.block_tokens(body, images, [4], architecture.layout_of(body))[0]
    torch.testing.assert_close(tokens.transpose(1, 2).reshape(2, -1, 3, 2), body.forward_features(images))


def test_blocks_that_are_not_to_be_told_are_named():
    with pytest.raises(UserError, match="ResNet has no list of blocks"):
        architecture.blocks_of(timm.create_model("test_resnet"))
