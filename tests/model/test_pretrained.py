from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from conftest import tiny
from safetensors.torch import save_file

from iwm.model.encoder import Encoder
from iwm.model.pretrained import open_timm, start_from_timm, timm_model
from iwm.runtime.errors import UserError

NAME = "test_vit"  # timm's own miniature: 160 px, patches of 16, with a class token


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return f"timm:{NAME},weights={path}"


def fitting(image_size: int = 160) -> Encoder:
    body: Any = timm.create_model(NAME)
    settings = replace(
        tiny().encoder,
        patch_size=16,
        width=body.embed_dim,
        depth=len(body.blocks),
        heads=2,
        mlp_ratio=body.blocks[0].mlp.fc1.out_features / body.embed_dim,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return Encoder(settings, image_size).eval()


@torch.no_grad()
def test_an_encoder_starts_from_a_timm_file(weights):
    encoder = fitting()
    start_from_timm(encoder, weights)
    _, body = open_timm(weights)
    state = body.state_dict()
    for name, value in encoder.state_dict().items():
        if name == "pos_embed":
            assert torch.equal(value, state["pos_embed"][:, 1:])  # without the class token's
        else:
            assert torch.equal(value, state[name]), name


@torch.no_grad()
def test_positions_of_another_grid_are_resampled(weights):
    encoder = fitting(96)
    before = encoder.state_dict()["pos_embed"].clone()
    start_from_timm(encoder, weights)
    after = encoder.state_dict()["pos_embed"]
    assert after.shape == before.shape
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("change", "said"), [({"width": 96, "heads": 3}, "does not fit"), ({"mean": (0.1, 0.2, 0.3)}, "--encoder.mean 0.5")]
)
def test_what_does_not_fit_is_named(weights, change, said):
    encoder = Encoder(replace(fitting().settings, **change), 160)
    with pytest.raises(UserError, match=said):
        start_from_timm(encoder, weights)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:no_such_model", "timm has no model"),
        (f"timm:{NAME},weight=x", "is not understood"),
        (f"timm:{NAME},weights=absent.pth", "There is no weights file"),
    ],
)
def test_bad_names(name, said):
    with pytest.raises(UserError, match=said):
        open_timm(name)


@pytest.mark.parametrize(
    ("name", "size"),
    [("deit_tiny_patch16_224", 48), ("eva02_tiny_patch14_224", 56), ("vit_relpos_small_patch16_224", 224)],
)
def test_models_take_any_size_where_timm_can(name, size):
    with torch.device("meta"):
        assert timm_model(name).forward_features(torch.zeros(1, 3, size, size)).ndim == 3
