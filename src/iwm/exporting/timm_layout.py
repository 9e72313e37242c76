"""timm: the encoder as a state dict and a config that `timm.create_model` loads strictly, with equal features.

Our encoder is a VisionTransformer of timm without class token: its sin-cos positions are the parameter `pos_embed`, its
final LayerNorm (affine, epsilon 1e-6) is timm's `norm`. The normalisation of pixels is no part of timm's model; mean
and deviation stand in its `pretrained_cfg`. The target normalisation without affine belongs to the world model and is
left out: `forward_features` gives what `world.encode` gives, where `encoder.layer` is the last block, behind as many
tokens as there are registers.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from iwm import config
from iwm.evaluation.tasks.classifier import MeanHead, load_classifier
from iwm.exporting.format import ExportFormat, Request
from iwm.model import architecture, weights
from iwm.model.encoder import PatchEncoder
from iwm.model.foreign_encoder import ForeignEncoder
from iwm.runtime import files
from iwm.runtime.errors import UserError
from iwm.runtime.tensors import save_file

NAMES = {
    (16, 192, 12, 3): "vit_tiny_patch16_224",
    (16, 384, 12, 6): "vit_small_patch16_224",
    (32, 384, 12, 6): "vit_small_patch32_224",
    (8, 768, 12, 12): "vit_base_patch8_224",
    (32, 768, 12, 12): "vit_base_patch32_224",
    (14, 1024, 24, 16): "vit_large_patch14_224",
    (16, 1024, 24, 16): "vit_large_patch16_224",
    (14, 1280, 32, 16): "vit_huge_patch14_224",
}
"""timm's name of a vision transformer by patch, width, depth and heads."""
OTHER = "vit_base_patch16_224"
"""That of any other: all sizes are arguments."""


class TimmLayout(ExportFormat):
    """The encoder; of a finetuned classifier without predictor, of pooling mean, the whole classifier."""

    name = "timm"
    takes = ("student",)

    def write(self, request: Request, folder: Path) -> dict[str, Any]:
        if request.finetuned:
            return write_classifier(request, folder)
        require_own_encoder(request)
        return write_encoder(request.encoder, request.model.settings, folder)

    def usage(self, out: Path, result: dict[str, Any]) -> list[str]:
        lines = [f"In Python: timm.create_model('local-dir:{out}', pretrained=True)"]
        if registers := result["model_args"].get("reg_tokens"):
            lines.append(f"The first {registers} tokens of forward_features are registers; the patches follow.")
        if "layer" in result:
            lines.append(
                f"The world model's tokens are those of block {result['layer']}: forward_intermediates(..., "
                f"indices=[{result['layer'] - 1}], norm=False), then a LayerNorm without affine."
            )
        return lines


def require_own_encoder(request: Request) -> None:
    """Raises UserError where the encoder is one of others as it is published: it is named, not copied."""
    if request.encoder_is_published:
        name = request.meta["settings"]["encoder"]["name"]
        bare = name if name.startswith("hf-hub:") else name.removeprefix("timm:")
        raise UserError(
            f"The encoder of {request.run} is {name} as it is published, so timm.create_model('{bare}', "
            "pretrained=True) has it; export its predictor with --format onnx, torch or safetensors."
        )


def write_encoder(encoder: PatchEncoder, settings: config.Config, folder: Path) -> dict[str, Any]:
    """Write an encoder, of ours or trained from one of others; returns what the result says of it."""
    if isinstance(encoder, ForeignEncoder):
        name, arguments = architecture.parsed(encoder.settings.architecture)
        if architecture.family_of(name) in architecture.ANY_SIZE:
            arguments = {"dynamic_img_size": True} | arguments
        elif "img_size" in arguments:
            arguments["img_size"] = settings.data.image_size
        tensors = encoder.body.state_dict()
        extra = {key: encoder.body.pretrained_cfg[key] for key in ("license",) if key in encoder.body.pretrained_cfg}
    else:
        name, arguments = _own_architecture(encoder, settings)
        tensors, extra = encoder.state_dict(), {}
    content = _config(name, arguments, encoder, settings.data.image_size, extra)
    return _write(folder, tensors, content) | ({"layer": encoder.layer} if encoder.layer != encoder.depth else {})


def write_classifier(request: Request, folder: Path) -> dict[str, Any]:
    """Write a finetuned classifier of ours whose head is linear on the mean token."""
    better = "give the run it came from, or take --format onnx."
    what = request.meta.get("classifier")
    if not what or "tasks" in what or what["predictor"] or what["head"] != "mean":
        raise UserError(f"{request.run} has a predictor or a head that timm's models have no place for; {better}")
    classifier = load_classifier(request.place)
    if isinstance(classifier.encoder, ForeignEncoder) or not isinstance(classifier.head, MeanHead):
        raise UserError(f"{request.run} pools the tokens of an encoder of others, which timm does otherwise; {better}")
    settings = config.Config(data=config.Data(image_size=classifier.size), encoder=classifier.encoder.settings)
    name, arguments = _own_architecture(classifier.encoder, settings)
    arguments["img_size"] = classifier.encoder.grid[0] * classifier.encoder.patch_size
    head = {f"head.{key}": value for key, value in classifier.head.linear.state_dict().items()}
    content = _config(name, arguments, classifier.encoder, classifier.size, {}, classifier.names)
    return _write(folder, {**classifier.encoder.state_dict(), **head}, content)


def _own_architecture(encoder: PatchEncoder, settings: config.Config) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments of an encoder of ours: all that its computation depends on, positions of any grid."""
    s = encoder.settings
    name = NAMES.get((s.patch_size, s.width, s.depth, s.heads), OTHER)
    arguments = {
        "img_size": settings.data.image_size,
        "patch_size": s.patch_size,
        "embed_dim": s.width,
        "depth": s.depth,
        "num_heads": s.heads,
        "mlp_ratio": s.mlp_ratio,
        "class_token": False,
        **({"reg_tokens": s.registers, "no_embed_class": True} if s.registers else {}),
        "global_pool": "avg",
        "fc_norm": False,
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
    }
    return name, arguments


def _config(
    name: str,
    arguments: dict[str, Any],
    encoder: PatchEncoder,
    size: int,
    extra: dict[str, Any],
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The `config.json` of a timm repository. A model without classifier is made with `num_classes` 0."""
    s = encoder.settings
    content = {
        "architecture": name,
        "num_classes": len(labels),
        "num_features": s.width,
        "model_args": arguments if labels else {"num_classes": 0, **arguments},
        "pretrained_cfg": {
            "num_classes": len(labels),
            "input_size": [3, size, size],
            "fixed_input_size": not arguments.get("dynamic_img_size", False),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(s.mean),
            "std": list(s.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **extra,
        },
    }
    return content | ({"label_names": list(labels)} if labels else {})


def _write(folder: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> dict[str, Any]:
    """Write both files, and see that timm loads them. Raises UserError when it does not."""
    save_file(tensors, folder / weights.TENSORS)
    files.write_text(folder / weights.CONFIG, json.dumps(content, indent=1))
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"timm {timm.__version__} cannot load this encoder ({reason}); update timm.") from None
    held = model.state_dict()
    different = [key for key, value in tensors.items() if key not in held or not torch.equal(held[key], value.cpu())]
    if different:
        raise UserError(f"timm {timm.__version__} loads other values of {different[0]}; update timm.")
    return {"architecture": content["architecture"], "model_args": content["model_args"]}
