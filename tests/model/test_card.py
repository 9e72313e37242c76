"""What a model card says of encoders of others; of everything else: tests/exporting/test_hub_folder.py."""

from dataclasses import replace

import torch
from conftest import tiny

import iwm
from iwm import config
from iwm.model import architecture, card


def text(**changes: object) -> str:
    small = {"patch_size": 8, "img_size": 32, "depth": 3, "embed_dim": 32, "num_heads": 2}
    name = "vit_tiny_patch16_224.augreg_in21k"
    encoder = replace(config.Encoder(name=f"timm:{name}", train="none"), **changes)  # pyright: ignore[reportArgumentType]
    encoder = architecture.described(encoder, architecture.written(name, small), None)
    torch.manual_seed(0)
    model = iwm.ImageWorldModel(tiny(data=config.Data(image_size=32), encoder=encoder))
    return card.text_of(model, card.Card(repository="me/photos", licence="mit"))


def test_a_published_encoder_is_named_with_its_licence():
    written = text(layer=2)
    assert (
        "`timm:vit_tiny_patch16_224.augreg_in21k` as it is published, tokens of block 2 of 3; it is no part" in written
    )
    assert "whose licence (apache-2.0) holds for it" in written
    assert written.startswith("---\nlibrary_name: iwm\nlicense: mit\n")
    assert "# photos\n" in written


def test_one_that_was_trained_on_says_how_far():
    assert "`timm:vit_tiny_patch16_224.augreg_in21k`, trained on (`last-1`)" in text(train="last-1")
    assert "weights=mine.pth`, trained" in text(name="timm:vit_tiny_patch16_224,weights=/home/me/mine.pth", train="all")
