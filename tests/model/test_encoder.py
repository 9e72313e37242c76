from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from conftest import tiny

from iwm import config
from iwm.model.encoder import Encoder, checked_pixels
from iwm.runtime.errors import UserError

SETTINGS = config.Encoder(patch_size=8, width=48, depth=3, heads=4)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SETTINGS, 32).eval()


def timm_twin(encoder: Encoder, **changes):
    """The corresponding timm model with the encoder's weights, loaded strictly."""
    s = encoder.settings
    model = timm.models.VisionTransformer(
        img_size=encoder.grid[0] * s.patch_size,
        patch_size=s.patch_size,
        embed_dim=s.width,
        depth=s.depth,
        num_heads=s.heads,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        reg_tokens=s.registers,
        no_embed_class=True,
        num_classes=0,
        **changes,
    )
    model.load_state_dict(encoder.state_dict(), strict=True)
    return model.eval()


@torch.no_grad()
def test_timm_loads_it_strictly_and_gives_the_same_features(encoder, images):
    pixels = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(timm_twin(encoder).forward_features(encoder.normalise(pixels)), encoder.tokens(pixels))


@torch.no_grad()
def test_dropped_tokens_equal_an_attention_mask(encoder):
    """Dropping tokens before block 0 = timm's forward in which kept patches attend to kept patches only."""
    pixels = torch.rand(3, 3, 32, 32)
    keep = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(3)])
    visible = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)
    masked = timm_twin(encoder).forward_features(encoder.normalise(pixels), attn_mask=visible[:, None, None, :])
    torch.testing.assert_close(
        encoder.tokens(pixels, keep), masked.gather(1, keep[..., None].expand(-1, -1, 48)), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (40, 24)])
def test_other_sizes_resample_positions_as_timm_does(encoder, size):
    pixels = torch.rand(2, 3, *size)
    twin = timm_twin(encoder, dynamic_img_size=True)
    torch.testing.assert_close(twin.forward_features(encoder.normalise(pixels)), encoder.tokens(pixels))
    assert encoder.grid_of(pixels) == (size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_sides_the_patch_does_not_divide_are_padded_with_the_mean(encoder):
    pixels = torch.rand(1, 3, 30, 27)
    padded = encoder.normalise(pixels)
    assert padded.shape[-2:] == (32, 32)
    assert (padded[..., 30:, :] == 0).all()
    assert (padded[..., 27:] == 0).all()
    assert encoder.tokens(pixels).shape == (1, 16, 48)
    assert encoder.grid_of(pixels) == (4, 4)


@torch.no_grad()
def test_uint8_and_float_pixels_agree(encoder):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(encoder.tokens(pixels), encoder.tokens(pixels / 255))


@torch.no_grad()
def test_average_of_the_last_blocks(encoder):
    pixels = torch.rand(2, 3, 32, 32)
    blocks = timm_twin(encoder).forward_intermediates(
        encoder.normalise(pixels), indices=2, norm=False, intermediates_only=True, output_fmt="NLC"
    )
    assert isinstance(blocks, list)
    wanted = torch.stack([torch.nn.functional.layer_norm(b, (48,)) for b in blocks]).mean(0)
    torch.testing.assert_close(encoder.tokens(pixels, average=2), wanted)


def test_positions_are_frozen(encoder):
    assert not encoder.pos_embed.requires_grad
    assert "mean" not in encoder.state_dict()


@pytest.mark.parametrize(("size", "patch"), [(4, 8), (30, 8)])
def test_an_image_that_does_not_divide_is_refused(size, patch):
    with pytest.raises(UserError, match="patches of 8 px"):
        Encoder(replace(SETTINGS, patch_size=patch), size)


def test_a_width_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"encoder\.heads"):
        Encoder(replace(tiny().encoder, heads=3), 16)


@torch.no_grad()
def test_intermediates_are_timms_after_a_layer_norm(encoder):
    images = torch.rand(2, 3, 32, 48)
    found = encoder.intermediates(images, [1, 2, 2, 3])
    twin = timm_twin(encoder, dynamic_img_size=True).eval()
    raw: Any = twin.forward_intermediates(
        encoder.normalise(images), indices=[0, 1], intermediates_only=True, output_fmt="NLC"
    )
    for ours, theirs in zip(found[:3], (raw[0], raw[1], raw[1]), strict=True):
        torch.testing.assert_close(ours, torch.nn.functional.layer_norm(theirs, (48,)))
    assert torch.equal(found[3], encoder.tokens(images))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x.float(), r"floats from 0 to 2\d\d; .* \(images / 255\)"),
        (lambda x: (x.float() / 255 - 0.45) / 0.22, "leave out mean and deviation"),
        (lambda x: x.long(), r"Images are torch.int64; .*images.to\(torch.uint8\)"),
        (lambda x: x.int(), "Images are torch.int32"),
        (lambda x: x[:, :1], r"of 1 channels; .*expand\(-1, 3, -1, -1\)"),
        (lambda x: x.movedim(1, -1), r"movedim\(-1, 1\)"),
        (lambda x: x[0], r"images\[None\]"),
        (lambda x: x.float() * torch.nan, "floats from nan"),
    ],
)
def test_pixels_of_another_scale_are_refused(images, change, sentence):
    with pytest.raises(UserError, match=sentence):
        checked_pixels(change(images))


def test_every_type_of_the_right_scale_is_taken(images):
    assert checked_pixels(images) is images
    for kind in (torch.float16, torch.float32, torch.float64):
        assert checked_pixels((images / 255).to(kind)).allclose(images / 255, atol=1e-3)
    assert checked_pixels(images / 255 * 1.1 - 0.05).dtype == torch.float32  # bicubic resizing overshoots


@torch.no_grad()
@pytest.mark.parametrize(("layer", "number"), [(1, 1), (2, 2), (-2, 2), (-1, 3), (0, 3)])
def test_tokens_of_an_earlier_block(layer, number):
    """As `encoder.layer` says, for ours as for an encoder of others."""
    torch.manual_seed(0)
    encoder, pixels = Encoder(replace(SETTINGS, layer=layer), 32).eval(), torch.rand(2, 3, 32, 32)
    assert encoder.layer == number
    outputs: Any = timm_twin(encoder).forward_intermediates(
        encoder.normalise(pixels), output_fmt="NLC", intermediates_only=True
    )
    normed = [torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in outputs]
    last = encoder.norm(outputs[-1])
    torch.testing.assert_close(encoder.tokens(pixels), last if number == 3 else normed[number - 1])
    if number > 1:  # one block alone is no average
        torch.testing.assert_close(encoder.tokens(pixels, average=number), torch.stack(normed[:number]).mean(0))
    both = encoder.tokens_and_last(pixels)
    torch.testing.assert_close(both[0], encoder.tokens(pixels))
    torch.testing.assert_close(both[1], last)
    assert len(encoder.behind) == (0 if number == 3 else 3 - number + 1)


# ---- registers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_registers() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(replace(SETTINGS, registers=3, layer=2), 32).eval()
    torch.nn.init.normal_(encoder.get_parameter("reg_token"))
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_registers_are_timms_and_only_patches_come_out(with_registers, size):
    encoder, pixels = with_registers, torch.rand(2, 3, *size)
    count = size[0] * size[1] // 64
    twin = timm_twin(encoder, dynamic_img_size=True)
    raw: Any = twin.forward_intermediates(encoder.normalise(pixels), output_fmt="NLC", intermediates_only=True)
    assert raw[0].shape == (2, count, 48), "timm leaves its registers out as well"
    normed = [torch.nn.functional.layer_norm(x, (48,)) for x in raw]
    last = twin.forward_features(encoder.normalise(pixels))
    assert last.shape == (2, 3 + count, 48)
    torch.testing.assert_close(encoder.tokens(pixels), normed[1])
    torch.testing.assert_close(encoder.tokens(pixels, average=2), (normed[0] + normed[1]) / 2)
    for ours, theirs in zip(encoder.intermediates(pixels, [1, 2, 3]), (normed[0], normed[1], last[:, 3:]), strict=True):
        torch.testing.assert_close(ours, theirs)
    both = encoder.tokens_and_last(pixels)
    torch.testing.assert_close(both[0], normed[1])
    torch.testing.assert_close(both[1], last[:, 3:])


@torch.no_grad()
def test_registers_are_never_dropped(with_registers):
    """Dropping patches = timm's forward in which kept patches and all registers attend to each other only."""
    pixels, keep = torch.rand(3, 3, 32, 32), torch.stack([torch.randperm(16)[:7].sort().values for _ in range(3)])
    visible = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)
    visible = torch.cat([torch.ones(3, 3, dtype=torch.bool), visible], dim=1)
    twin = timm_twin(with_registers)
    masked = twin.forward_features(with_registers.normalise(pixels), attn_mask=visible[:, None, None, :])[:, 3:]
    wanted = masked.gather(1, keep[..., None].expand(-1, -1, 48))
    last = with_registers.tokens_and_last(pixels, keep)[1]
    torch.testing.assert_close(last, wanted, atol=1e-5, rtol=1e-5)


def test_without_registers_every_weight_is_drawn_as_before():
    states = []
    for registers in (0, 4):
        torch.manual_seed(0)
        states.append(Encoder(replace(SETTINGS, registers=registers), 32).state_dict())
    assert set(states[1]) - set(states[0]) == {"reg_token"}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert 0.01 < float(states[1]["reg_token"].std()) < 0.03
