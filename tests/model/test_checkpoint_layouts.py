"""Each author's layout, written as they write it, becomes the same encoder."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from iwm.model import checkpoint_layouts
from iwm.model.pretrained import open_timm
from iwm.runtime.errors import UserError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0, "img_size": 32, "patch_size": 8}


def body(name: str = "vit_tiny_patch16_224", seed: int = 0, **own: Any) -> Any:
    torch.manual_seed(seed)
    made = timm.create_model(name, **{**SMALL, **own})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def beside(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**state, **{name: torch.zeros(3) for name in names}}


def ijepa(state: dict[str, Any]) -> dict[str, Any]:
    other = {name: value + 1 for name, value in state.items()}
    weights = {"encoder": prefixed(other, "module."), "target_encoder": prefixed(state, "module.")}
    return {**weights, "predictor": {"module.mask_token": torch.zeros(3)}, "opt": {}, "epoch": 300, "lr": 1e-3}


def mae(state: dict[str, Any]) -> dict[str, Any]:
    model = beside(state, "mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "decoder_pred.bias")
    return {"model": model, "optimizer": {}, "epoch": 1, "args": argparse.Namespace(lr=1e-3, data="x")}


def dino(state: dict[str, Any]) -> dict[str, Any]:
    other = {name: value + 1 for name, value in state.items()}
    teacher = beside(prefixed(state, "backbone."), "head.mlp.0.weight", "head.last_layer.weight_g")
    student = beside(prefixed(other, "module.backbone."), "module.head.mlp.0.weight")
    return {"student": student, "teacher": teacher, "args": argparse.Namespace(arch="vit_small")}


LAYOUTS = {
    "bare": lambda state: state,
    "I-JEPA": ijepa,
    "MAE": mae,
    "DINO": dino,
    "lightning": lambda state: {"state_dict": prefixed(state, "model.encoder.")},
    "compiled": lambda state: {"model_ema": prefixed(state, "_orig_mod."), "model": {}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised(tmp_path: Path, layout: str):
    original, other = body(), body(seed=1)
    torch.save(LAYOUTS[layout](original.state_dict()), path := tmp_path / "checkpoint.pth")
    checkpoint_layouts.load(other, path, "vit_tiny_patch16_224")
    for name, value in original.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_dinov2s_own_names_and_chunks_give_the_same_features(tmp_path: Path, registers: int):
    """Its files have a mask token, registers under another name, a class position beside them, blocks in chunks."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    original, other = body(name).eval(), body(name, seed=1).eval()
    theirs = {}
    for key, value in original.state_dict().items():
        for block, chunk in ((0, 0), (1, 0), (2, 1)):
            if key.startswith(f"blocks.{block}."):
                key = key.replace(f"blocks.{block}.", f"blocks.{chunk}.{block}.")
                break
        theirs[key.replace("reg_token", "register_tokens")] = value
    theirs["mask_token"] = torch.zeros(1, 32)
    if registers:
        theirs["cls_token"] = original.cls_token - 0.5
        theirs["pos_embed"] = torch.cat([torch.full((1, 1, 32), 0.5), original.pos_embed], dim=1)
    teacher = beside(prefixed(theirs, "backbone."), "dino_head.mlp.0.weight", "ibot_head.mlp.0.weight")
    torch.save({"teacher": teacher}, path := tmp_path / "teacher_checkpoint.pth")
    checkpoint_layouts.load(other, path, name)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(other.forward_features(images), original.forward_features(images))


def test_what_does_not_fit_is_one_short_sentence(tmp_path: Path):
    save_file(body(embed_dim=64).state_dict(), wide := tmp_path / "wide.safetensors")
    with pytest.raises(
        UserError, match=r"cls_token is 1 x 1 x 64 there, 1 x 1 x 32 here\); give the model they"
    ) as error:
        checkpoint_layouts.load(body(), wide, "vit_tiny_patch16_224")
    assert str(error.value).count("\n") == 0
    save_file(body(depth=2).state_dict(), short := tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"it lacks blocks\.2\.attn"):
        checkpoint_layouts.load(body(), short, "vit_tiny_patch16_224")
    save_file(body(init_values=1.0).state_dict(), scaled := tmp_path / "scaled.safetensors")
    with pytest.raises(UserError, match=r"it has blocks\.0\.ls1\.gamma"):
        checkpoint_layouts.load(body(), scaled, "vit_tiny_patch16_224")


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"model": Harmful()}, path := tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="holds code, or is no file of PyTorch's"):
        open_timm(f"timm:test_vit,weights={path}")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello world", b"version https://git-lfs.github.com/spec/v1", b"\x80\x02]"])
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes):
    (path := tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"give \.safetensors or a plain state dict") as caught:
        checkpoint_layouts.read(path)
    assert "weights_only" not in str(caught.value)


def test_numbers_among_the_names_are_no_weights():
    tensor = torch.zeros(1)
    assert checkpoint_layouts.encoder_weights({3: tensor, "blocks.0.w": tensor}) == {"blocks.0.w": tensor}
