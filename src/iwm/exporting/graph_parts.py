"""The parts of a run as functions of tensors alone, which can be made a graph: any batch, one size of images.

    encoder     images [b, 3, s, s] in [0, 1]               -> tokens [b, n, d], pooled [b, d]
    predictor   tokens [b, n, d], action [b, k]             -> prediction [b, n, o], in target space
    decoder     tokens of target space [b, n, o]            -> pictures [b, 3, s, s] in [0, 1]
    classifier  images [b, 3, s, s]                         -> logits [b, c]
    segmenter   images [b, 3, s, s]                         -> logits [b, c, s, s]

Pixel statistics are inside; positions are those of the size, resampled beforehand where it is not the training's, for
an antialiased resampling inside a graph is done otherwise, or not at all, by other runtimes.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iwm.evaluation.tasks.classifier import Classifier, load_classifier, task_names
from iwm.evaluation.tasks.segmenter import Segmenter, load_segmenter
from iwm.exporting.format import Request
from iwm.model import weights
from iwm.model.encoder import PatchEncoder, require_whole_patches
from iwm.model.foreign_encoder import ForeignEncoder
from iwm.model.objectives.pixels import images_of
from iwm.model.predictor import Predictor
from iwm.model.vit import Grid
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.run_folder import RunFolder, is_remote, read_result
from iwm.runtime.console import console
from iwm.runtime.errors import UserError, did_you_mean

NAMES = ("encoder", "predictor", "decoder", "classifier", "segmenter")


@dataclass(frozen=True)
class Part:
    """What becomes a graph, and what it is compared with."""

    name: str
    module: nn.Module
    """Tensors in, a tuple of tensors out."""
    examples: Callable[[int], dict[str, Tensor]]
    """examples(batch): random inputs by name, drawn by the seed `batch`."""
    outputs: tuple[str, ...]
    reference: Callable[..., tuple[Tensor, ...]]
    """The same by the model as it is used from Python."""
    notes: Mapping[str, Any]
    """What the result says of it."""


# ---- which -----------------------------------------------------------------------------------------------------------


def parts_of(request: Request) -> list[Part]:
    """The parts that the options name, by default all there are.

    Raises UserError for unknown ones, and those that the run does not have.
    """
    o = request.options
    for name in o.part:
        if name not in NAMES:
            raise UserError(f"There is no part '{name}'; {did_you_mean(name, NAMES)}")
    places = _finetuned(request)
    available = [
        *(() if request.finetuned else _world_parts(request.model)),
        *(kind for kind in places if places[kind]),
    ]
    for name in o.part:
        if name not in available:
            raise UserError(f"{request.run} has no {name}; it has {', '.join(available)}.")
        if len(places.get(name, ())) > 1:
            listed = ", ".join(map(str, places[name]))
            raise UserError(f"{request.run} has {len(places[name])} {name}s; give one of them as RUN: {listed}.")
    chosen = [name for name in available if name in o.part] if o.part else _usual(request, available, places)
    parts: list[Part] = []
    for name in chosen:
        if name in places:
            parts += (
                _classifiers(places[name][0], o.size) if name == "classifier" else [_segmenter(places[name][0], o.size)]
            )
        else:
            parts.append(_world_part(name, request))
    return parts


def _world_parts(model: ImageWorldModel) -> list[str]:
    return ["encoder", *(["predictor"] if model.objective.predicts else []), *(["decoder"] if model.decodes else [])]


def _usual(request: Request, available: list[str], places: Mapping[str, list[Path]]) -> list[str]:
    """What is exported where nobody chose, with a sentence on what is not."""
    usual = [name for name in available if len(places.get(name, ())) <= 1]
    for name in set(available) - set(usual):
        listed = ", ".join(map(str, places[name]))
        console.print(f"Left out: the {len(places[name])} {name}s; give one of them as RUN: {listed}.")
    if "encoder" in usual and request.encoder_is_published:
        name = request.meta["settings"]["encoder"]["name"]
        console.print(f"Left out: the encoder, {name} as it is published; --part encoder exports it too.")
        usual.remove("encoder")
    return usual


def _finetuned(request: Request) -> dict[str, list[Path]]:
    """The folders of classifiers and segmenters: RUN itself, or those beside the results of the run."""
    if request.finetuned:
        return {request.finetuned: [request.place]}
    kinds: dict[str, list[Path]] = {"classifier": [], "segmenter": []}
    folders = [] if is_remote(request.run) else RunFolder.of(request.run).weights_of_results()
    for folder in folders:
        content = read_result(folder / weights.CONFIG)
        for kind in kinds:
            if kind in content:
                kinds[kind].append(folder)
    return kinds


# ---- at one size -----------------------------------------------------------------------------------------------------


def encoder_at(encoder: PatchEncoder, size: int) -> PatchEncoder:
    """A copy of the encoder whose positions are those of images of this side, px.

    Raises UserError where the patches do not divide it, or an encoder of others takes its own size only.
    """
    require_whole_patches(encoder.patch_size, size)
    fixed, side = copy.deepcopy(encoder).eval(), size // encoder.patch_size
    body = fixed.timm_model
    if isinstance(fixed, ForeignEncoder) and fixed.grid != (side, side) and not hasattr(body, "patch_embed"):
        raise UserError(
            f"{fixed.settings.name} takes images of {fixed.grid[0] * fixed.patch_size} px; leave out --size."
        )
    resize = getattr(body, "set_input_size", None)
    if resize is not None and getattr(body, "dynamic_img_size", False):
        resize((size, size))
    if isinstance(fixed, ForeignEncoder):
        fixed.grid = (side, side)
    return fixed


def predictor_at(predictor: Predictor, grid: Grid) -> Predictor:
    """A copy of the predictor whose positions are those of this grid."""
    fixed = copy.deepcopy(predictor).eval()
    fixed.positions, fixed.grid = predictor.positions_of(grid), grid
    return fixed


# ---- the world model -------------------------------------------------------------------------------------------------


class EncoderGraph(nn.Module):
    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = self.encoder.tokens(images)
        return tokens, tokens.mean(dim=1)


class PredictorGraph(nn.Module):
    """`ImageWorldModel.predict`."""

    def __init__(self, predictor: Predictor, target_norm: nn.Module | None) -> None:
        super().__init__()
        self.predictor, self.target_norm = predictor, target_norm

    def forward(self, tokens: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        values = self.predictor(tokens, action)
        return ((values if self.target_norm is None else values + self.target_norm(tokens)),)


class DecoderGraph(nn.Module):
    """`ImageWorldModel.decode`."""

    def __init__(self, pictures: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pictures = pictures

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (self.pictures(tokens).clamp(0, 1),)


def _world_part(name: str, request: Request) -> Part:
    model, encoder = request.model, request.encoder
    size = request.options.size or model.settings.data.image_size
    fixed = encoder_at(encoder, size)
    grid = (size // encoder.patch_size, size // encoder.patch_size)
    images = partial(_random_images, size)
    if name == "encoder":
        statistics = {"pixels": "in [0, 1]", "mean": list(encoder.settings.mean), "std": list(encoder.settings.std)}

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            tokens = encoder.tokens(images)
            return tokens, tokens.mean(dim=1)

        return Part(name, EncoderGraph(fixed), images, ("tokens", "pooled"), encode, statistics)
    if name == "predictor":
        residual = model.target_norm if model.settings.predictor.residual else None
        module = PredictorGraph(predictor_at(model.predictor, grid), residual)

        def ask(batch: int) -> dict[str, Tensor]:
            draw = torch.rand(batch, model.space.dim, generator=torch.Generator().manual_seed(batch))
            return {"tokens": encoder.tokens(images(batch)["images"]), "action": 2 * draw - 1}

        def predict(tokens: Tensor, action: Tensor) -> tuple[Tensor, ...]:
            return (model.predict(Tokens(tokens, grid), action).values,)

        return Part(name, module, ask, ("prediction",), predict, {"action": action_components(model)})

    def targets(batch: int) -> dict[str, Tensor]:
        return {"tokens": model.target(images(batch)["images"]).values}

    def decode(tokens: Tensor) -> tuple[Tensor, ...]:
        return (model.decode(Tokens(tokens, grid)),)

    return Part(name, DecoderGraph(_pictures(model, grid)), targets, ("pictures",), decode, {"values": "in [0, 1]"})


def _pictures(model: ImageWorldModel, grid: Grid) -> Callable[[Tensor], Tensor]:
    """Tokens of target space as pictures, without what a graph cannot hold."""
    decoder = model.decoder
    blank = torch.zeros(1, grid[0] * grid[1], model.objective.output_width)
    if model.objective.shown(model, blank, grid) is not None or decoder is None:
        return lambda tokens: model.objective.shown(model, tokens, grid)  # pyright: ignore[reportReturnType]
    return lambda tokens: images_of(decoder.patches(tokens), grid, decoder.patch_size)


def action_components(model: ImageWorldModel) -> list[dict[str, Any]]:
    """What each number of an action means: a change in raw units over its range, or a flag."""
    return [
        {"name": t.name, "divide_by": t.range, "unit": "raw change, target minus source"}
        if t.graded
        else {"name": t.name, "unit": "1: the source carries it, and it is to be undone"}
        for t in model.space.transformations
    ]


def _random_images(size: int, batch: int) -> dict[str, Tensor]:
    """Smooth pictures with noise, [b, 3, size, size] in [0, 1]."""
    generator = torch.Generator().manual_seed(batch)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return {"images": (smooth + 0.1 * torch.rand(batch, 3, size, size, generator=generator)).clamp(0, 1)}


# ---- finetuned -------------------------------------------------------------------------------------------------------


class TaskGraph(nn.Module):
    def __init__(self, model: Classifier | Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images),)


def _classifiers(folder: Path, size: int) -> list[Part]:
    """The classifier of a folder, or of every task of it."""
    parts = []
    for task in task_names(folder) or ("",):
        classifier = load_classifier(folder, task=task)
        if size not in (0, classifier.size):
            raise UserError(f"The classifier in {folder} sees {classifier.size} px; leave out --size.")
        fixed = copy.deepcopy(classifier)
        fixed.encoder = encoder_at(classifier.encoder, fixed.grid[0] * classifier.encoder.patch_size)
        if fixed.predictor is not None:
            fixed.predictor = predictor_at(fixed.predictor, fixed.grid)
        name = f"classifier-{task}" if task else "classifier"
        parts.append(_task_part(name, fixed, classifier, classifier.size))
    return parts


def _segmenter(folder: Path, size: int) -> Part:
    segmenter = load_segmenter(folder)
    side = size or segmenter.size
    fixed = copy.deepcopy(segmenter)
    padded = -(-side // segmenter.encoder.patch_size)
    fixed.encoder = encoder_at(segmenter.encoder, padded * segmenter.encoder.patch_size)
    if fixed.predictor is not None:
        fixed.predictor = predictor_at(fixed.predictor, (padded, padded))
    return _task_part("segmenter", fixed, segmenter, side)


def _task_part(name: str, fixed: Classifier | Segmenter, model: Classifier | Segmenter, side: int) -> Part:
    def reference(images: Float[Tensor, "b 3 s s"]) -> tuple[Tensor, ...]:
        return (model(images),)

    notes = {"pixels": "in [0, 1]", "classes": list(model.names)}
    return Part(name, TaskGraph(fixed), partial(_random_images, side), ("logits",), reference, notes)
