"""timm loads what is exported strictly, and its features are ours."""

import json
from typing import Any

import pytest
import timm
import torch
from conftest import tiny
from timm.data.config import resolve_model_data_config

from exporting.models import classifier, options, replaced, world
from iwm import cli, config
from iwm.evaluation.tasks.classifier import load_classifier
from iwm.exporting.format import Request
from iwm.exporting.timm_layout import NAMES, TimmLayout
from iwm.model import architecture
from iwm.run_folder import load_model
from iwm.runtime.errors import UserError

OTHERS = {
    "vit_tiny_patch16_224": ({"patch_size": 8, "img_size": 48}, 32),
    "vit_small_patch14_reg4_dinov2": ({"patch_size": 8, "img_size": 48, "init_values": 0.5}, 32),
    "vit_small_patch16_dinov3": ({"patch_size": 8, "img_size": 32, "init_values": 0.5}, 32),
    "vit_base_patch16_siglip_224": ({"patch_size": 8, "img_size": 32}, 32),
    "vit_tiny_r_s16_p8_224": ({"img_size": 128}, 128),
}
"""timm's names of encoders of others with arguments that make them small, and a side of images."""


def on_other(name: str, **changes: Any) -> dict[str, Any]:
    """Settings of a world model on one of OTHERS, as an encoder of the hub with such arguments brings them."""
    arguments, size = OTHERS[name]
    own = architecture.written(name, {"depth": 3, "embed_dim": 32, "num_heads": 2, **arguments})
    encoder = config.Encoder(name="hf-hub:somebody/small", **changes)
    return {"data": config.Data(image_size=size), "encoder": architecture.described(encoder, own, None)}


def loaded(run: Any, folder: Any, **changes: Any) -> Any:
    """The model that timm makes of the export of a run."""
    folder.mkdir()
    TimmLayout().write(Request(options(run, format="timm", **changes)), folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def normalised(images: torch.Tensor, model: Any) -> torch.Tensor:
    """The pixels as timm's own data config says."""
    expected = resolve_model_data_config(model)
    mean, std = (torch.tensor(expected[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


@torch.no_grad()
def test_registers_go_along_and_stand_before_the_patches(tmp_path):
    run = world(tmp_path / "run", **replaced(tiny(), "encoder", registers=3))
    model, body = load_model(run), loaded(run, tmp_path / "out")
    for size in ((16, 16), (24, 16)):
        images = torch.rand(2, 3, *size)
        features = body.forward_features(normalised(images, body))
        torch.testing.assert_close(features[:, 3:], model.encode(images).values)
        torch.testing.assert_close(body.forward_head(features), model.encode(images).pooled)
    result = json.loads((tmp_path / "out" / "config.json").read_text())
    assert TimmLayout().usage(tmp_path, result)[1].startswith("The first 3 tokens of forward_features are registers")


@torch.no_grad()
@pytest.mark.parametrize("student", [False, True])
def test_features_of_our_encoder_are_equal_at_every_size(tmp_path, student):
    run = world(
        tmp_path / "run", **replaced(tiny(), "encoder", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), mlp_ratio=3)
    )
    model, body = load_model(run), loaded(run, tmp_path / "out", student=student)
    for size in ((16, 16), (24, 16), (18, 13)):  # the last is no whole number of patches
        images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
        tokens = model.encode(images, student=student)
        torch.testing.assert_close(body.forward_features(normalised(images, body)), tokens.values, atol=1e-6, rtol=0)
        torch.testing.assert_close(body(normalised(images, body)), tokens.pooled, atol=1e-6, rtol=0)
    assert body.num_classes == 0
    assert tuple(resolve_model_data_config(body)["input_size"]) == (3, 16, 16)


@torch.no_grad()
def test_tokens_of_an_earlier_block_are_had_as_the_command_says(tmp_path, capsys):
    run = world(tmp_path / "run", **replaced(tiny(), "encoder", layer=1))
    assert cli.main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "tokens are those of block 1: forward_intermediates(..., indices=[0], norm=False), then a LayerNorm" in words
    body: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    images = torch.rand(2, 3, 16, 16)
    (tokens,) = body.forward_intermediates(
        normalised(images, body), indices=[0], norm=False, output_fmt="NLC", intermediates_only=True
    )
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    torch.testing.assert_close(tokens, load_model(run).encode(images).values, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_file_alone_is_a_state_dict_for_the_arguments_in_the_result(tmp_path):
    run = world(tmp_path / "run")
    assert cli.main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "export.json").read_text())
    path = str(tmp_path / "out" / "model.safetensors")
    body: Any = timm.create_model(result["architecture"], checkpoint_path=path, **result["model_args"])
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(
        body.eval().forward_features(
            (images - load_model(run).target_encoder.mean) / load_model(run).target_encoder.std
        ),
        load_model(run).encode(images).values,
    )


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_features_of_an_encoder_of_others_that_was_trained_on_are_equal(tmp_path, name):
    run = world(tmp_path / "run", **on_other(name, train="last-1"))
    model, body = load_model(run), loaded(run, tmp_path / "out")
    images = torch.rand(2, 3, *2 * (model.settings.data.image_size,))
    tokens = body.forward_features(normalised(images, body))[:, body.num_prefix_tokens :]
    torch.testing.assert_close(tokens, model.encode(images).values, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_finetuned_classifier_on_the_mean_token_is_one_of_timm(tmp_path):
    run = world(tmp_path / "run")
    folder = classifier(run, tmp_path / "mean", head="mean", predicts=False)
    body, images = loaded(folder, tmp_path / "out"), torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(body(normalised(images, body)), load_classifier(folder)(images), atol=1e-6, rtol=0)
    assert body.num_classes == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["a", "b/c", "d"]


def test_what_timm_has_no_place_for_is_refused(tmp_path):
    run = world(tmp_path / "run")
    for name, changes in {"attentive": {}, "tasks": {"tasks": ("x", "y")}}.items():
        folder = classifier(run, tmp_path / name, **changes)
        with pytest.raises(
            UserError, match="has a predictor or a head that timm's models have no place for; give the run"
        ):
            loaded(folder, tmp_path / f"out-{name}")
    still = world(tmp_path / "still", **on_other("vit_tiny_patch16_224", train="none"))
    with pytest.raises(
        UserError, match=r"so timm.create_model\('hf-hub:somebody/small', pretrained=True\) has it; export"
    ):
        loaded(still, tmp_path / "out-still")


@pytest.mark.parametrize(("sizes", "name"), NAMES.items())
def test_names_are_those_of_timms_models_of_these_sizes(sizes, name):
    patch, width, depth, heads = sizes
    with torch.device("meta"):
        body: Any = timm.create_model(name)
    assert (body.patch_embed.patch_size[0], body.embed_dim, len(body.blocks)) == (patch, width, depth)
    assert body.blocks[0].attn.num_heads == heads
    assert config.Encoder(patch_size=patch, width=width, depth=depth, heads=heads).heads == heads
