"""Models as drawn, written to disk as runs and as finetuned weights are: for tests of exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from conftest import tiny

from iwm import config
from iwm.evaluation.tasks.classifier import AttentiveHead, Classifier, MeanHead, save_classifier, save_tasks
from iwm.evaluation.tasks.segmenter import Segmenter, head_of, save_segmenter
from iwm.model import pixel_decoder, pretrained, weights
from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.predictor import Predictor
from iwm.model.world_model import ImageWorldModel, for_tasks, seen_width
from iwm.run_folder import identity
from iwm.verbs.export import Export


def options(run: str | Path, **changes: Any) -> Export:
    return Export(run=str(run), **{"format": "torch", "out": "unused", **changes})


def moved(model: ImageWorldModel) -> ImageWorldModel:
    """The model with gates open, teacher and student apart and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # the same to both of one that stands still; positions stay what they are
            if "pos_embed" not in name:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
        for name, value in model.target_norm.named_buffers():
            value.add_(0.5 * torch.rand(value.shape, generator=generator) if name != "folded" else 0)
    return model.eval()


def world(folder: Path, decoder: bool = False, **groups: Any) -> Path:
    """A run with a world model of `tiny` and these settings, and perhaps a pixel decoder."""
    torch.manual_seed(0)
    model = moved(ImageWorldModel(tiny(**groups)))
    weights.export(model, folder / "model", step=3)
    if decoder:
        fitted(model).write(folder / "model" / weights.DECODER, identity(str(folder)))
    return folder


def fitted(model: ImageWorldModel) -> PixelDecoder:
    """A pixel decoder as drawn."""
    numbers, width = 3 * model.settings.encoder.patch_size**2, model.objective.output_width
    generator = torch.Generator().manual_seed(2)
    return pixel_decoder.PixelDecoder(
        0.1 * torch.randn(numbers, width, generator=generator),
        torch.full((numbers,), 0.5),
        torch.randn(8, width, generator=generator),
        torch.zeros(8),
        0.1 * torch.randn(numbers, 8, generator=generator),
    )


def foreign(kind: str, size: int, **changes: Any) -> dict[str, Any]:
    """Groups of settings of a world model on one of `tiny_encoders`, weights as drawn."""
    encoder = config.Encoder(name=f"timm:{kind},weights=random", **changes)
    return {"data": config.Data(image_size=size), "encoder": pretrained.with_encoder(encoder, {})}


def classifier(
    run: Path,
    folder: Path,
    *,
    head: str = "attentive",
    predicts: bool = True,
    queries: Literal["all", "one"] = "all",
    tasks: tuple[str, ...] = (),
    size: int = 0,
) -> Path:
    """Weights of a classifier of three classes as `iwm finetune` writes them, or of tasks as `iwm multitask` does."""
    torch.manual_seed(1)
    model = weights.read_model(run / "model")
    predictor = _predictor(model) if predicts else None
    made = []
    for number, _ in enumerate(tasks or ("",)):
        width = seen_width(model.settings, predicts)
        one = AttentiveHead(width, 3) if head == "attentive" else MeanHead(width, 3)
        made.append(
            Classifier(model.target_encoder, predictor, one, model.space, size or model.settings.data.image_size)
        )
        made[-1].names, made[-1].queries = ("a", "b/c", "d"), queries
        if tasks:
            made[-1].token = torch.nn.Parameter(torch.randn(1, model.settings.predictor.width) + number)
    if tasks:
        save_tasks(made, tasks, model, folder)
    else:
        save_classifier(made[0], model, folder, finetuned={"data": str(folder / "secret" / "photos")})
    return folder


def segmenter(run: Path, folder: Path, kind: Literal["linear", "upernet"], *, predicts: bool) -> Path:
    """Weights of a segmenter of two classes as `iwm segment` writes them."""
    torch.manual_seed(1)
    model = weights.read_model(run / "model")
    predictor = _predictor(model) if predicts else None
    width = model.settings.predictor.width if predicts else model.settings.encoder.width
    made = Segmenter(model.target_encoder, predictor, head_of(kind, width, 2, 8), model.space, 20)
    made.names = ("ground", "thing")
    save_segmenter(made, model, folder)
    return folder


def _predictor(model: ImageWorldModel) -> Predictor:
    predictor = for_tasks(model.settings, model.space.dim, model.grid, 0)
    predictor.open_gates()
    return predictor


def replaced(settings: config.Config, group: str, **changes: Any) -> dict[str, Any]:
    """One group of settings with changes, for `tiny`."""
    return {group: replace(getattr(settings, group), **changes)}
