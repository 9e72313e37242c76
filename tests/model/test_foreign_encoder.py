from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import SIZES

from iwm import config
from iwm.model import pretrained
from iwm.model.architecture import described
from iwm.model.foreign_encoder import ForeignEncoder, encoder_of
from iwm.runtime.errors import UserError


def make(kind: str, **changes: Any) -> ForeignEncoder:
    settings = config.Encoder(name=f"timm:{kind},weights=random", **changes)
    torch.manual_seed(0)
    encoder = encoder_of(pretrained.with_encoder(settings, {}), SIZES[kind])
    assert isinstance(encoder, ForeignEncoder)
    return encoder.eval()


def pixels(kind: str, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZES[kind], SIZES[kind], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("train", ["none", "all"])
def test_features_are_timms(kind, train):
    encoder, images = make(kind, train=train), pixels(kind)
    body, prefix = encoder.body, encoder.body.num_prefix_tokens
    whole = body.forward_features((images - encoder.mean) / encoder.std)[:, prefix:]
    torch.testing.assert_close(encoder.tokens(images), whole)
    assert whole.shape == (2, 16, encoder.settings.width)
    lower = make(kind, train=train, layer=2)
    lower.load_state_dict(encoder.state_dict())
    raw: Any = body.forward_intermediates(
        (images - encoder.mean) / encoder.std, indices=[0, 1], output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(lower.tokens(images), F.layer_norm(raw[1], raw[1].shape[-1:]))
    mean = torch.stack([F.layer_norm(x, x.shape[-1:]) for x in raw]).mean(0)
    torch.testing.assert_close(lower.tokens(images, average=2), mean)
    third, first, last = encoder.intermediates(images, [3, 1, 3])
    torch.testing.assert_close(third, whole)
    torch.testing.assert_close(last, whole)
    torch.testing.assert_close(first, F.layer_norm(raw[0], raw[0].shape[-1:]))


@torch.no_grad()
@pytest.mark.parametrize("kind", SIZES)
def test_what_it_does_not_see_changes_nothing(kind):
    """Dropped patches = timm's forward in which kept patches, class and register tokens attend to one another only."""
    encoder, images = make(kind), pixels(kind)
    keep = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(2)])
    prefix = encoder.body.num_prefix_tokens
    visible = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, keep, True)
    visible = torch.cat([torch.ones(2, prefix, dtype=torch.bool), visible], dim=1)
    raw = encoder.body.forward_intermediates(
        (images - encoder.mean) / encoder.std,
        indices=[2],
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
        attn_mask=visible[:, None, None, :],
    )[0]
    wanted = raw.gather(1, keep[..., None].expand(-1, -1, raw.shape[-1]))
    torch.testing.assert_close(encoder.tokens(images, keep), wanted, atol=1e-5, rtol=1e-4)
    still = make(kind, train="none")
    torch.testing.assert_close(
        still.tokens(images, keep), still.tokens(images).gather(1, keep[..., None].expand_as(wanted))
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tiny_class_token", "tiny_registers", "tiny_dinov3", "tiny_siglip"])
def test_other_sizes_resample_positions_as_timm_does(kind):
    encoder = make(kind)
    images = torch.rand(2, 3, 64, 40)
    wanted = encoder.body.forward_features((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(encoder.tokens(images), wanted[:, encoder.body.num_prefix_tokens :])
    assert encoder.tokens(images[:, :, :60, :33]).shape == (2, 40, 32)  # padded to whole patches


def trained(encoder: ForeignEncoder) -> set[str]:
    names = {name for name, p in encoder.body.named_parameters() if p.requires_grad}
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}


@pytest.mark.parametrize("kind", ["tiny_registers", "tiny_dinov3"])
def test_what_is_trained(kind):
    below = {"cls_token", "patch_embed", "reg_token"} | ({"pos_embed"} if kind == "tiny_registers" else set())
    assert trained(make(kind, train="none")) == set()
    assert trained(make(kind, train="last-1")) == {"blocks.2", "norm"}
    assert trained(make(kind, train="last-1", layer=2)) == {"blocks.1"}
    assert trained(make(kind)) == {"blocks.0", "blocks.1", "blocks.2", "norm", *below}
    assert trained(make(kind, layer=-3)) == {"blocks.0", *below}
    with pytest.raises(UserError, match="give at most last-2"):
        make(kind, train="last-3", layer=2)


def test_running_statistics_stand_still():
    encoder = make("tiny_hybrid")
    encoder.body.extra = torch.nn.BatchNorm2d(3)
    assert not encoder.train().body.extra.training
    assert encoder.body.blocks.training
    assert not make("tiny_hybrid", train="none").train().body.blocks.training


def test_sizes_come_with_the_model():
    settings = described(config.Encoder(name="timm:x"), "vit_small_patch14_dinov2", None)
    assert (settings.patch_size, settings.width, settings.depth, settings.heads) == (14, 384, 12, 6)
    assert settings.mean == pytest.approx((0.485, 0.456, 0.406))
    with pytest.raises(UserError, match="no layer 13 in an encoder of 12 blocks"):
        described(replace(settings, layer=13), "vit_small_patch14_dinov2", None)


@pytest.mark.parametrize(("name", "patch", "width"), [("test_convnext", 32, 64), ("test_vit_relpos", 16, 96)])
def test_other_models_give_maps_or_take_one_size(name, patch, width):
    settings = described(config.Encoder(name=f"timm:{name}", train="none"), name, None)
    assert (settings.patch_size, settings.width) == (patch, width)
    encoder = encoder_of(settings, 160).eval()
    assert encoder.tokens(torch.rand(1, 3, 160, 160)).shape == (1, (160 // patch) ** 2, width)


def test_blocks_that_are_not_alike_cannot_stand_side_by_side():
    settings = described(config.Encoder(name="timm:test_convnext", train="none"), "test_convnext", None)
    encoder = encoder_of(settings, 160).eval()
    with pytest.raises(UserError, match="needs an encoder whose blocks are alike"):
        encoder.intermediates(torch.rand(1, 3, 160, 160), [1, 2])


def test_patches_must_divide_the_image():
    with pytest.raises(UserError, match="patches of 8 px"):
        encoder_of(make("tiny_plain").settings, 30)


@torch.no_grad()
@pytest.mark.parametrize("kind", SIZES)
def test_tokens_and_last_are_those_of_the_layer_and_of_the_end(kind):
    encoder, images = make(kind, train="all", layer=1), pixels(kind)
    keep = torch.arange(10).expand(2, -1)
    tokens, last = encoder.tokens_and_last(images, keep)
    torch.testing.assert_close(tokens, encoder.tokens(images, keep))
    whole = make(kind, train="all")
    whole.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(last, whole.tokens(images, keep))
