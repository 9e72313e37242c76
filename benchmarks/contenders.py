"""Who takes a training step: this package, its plain twin, lightly's and stable-pretraining's I-JEPA modules.

All get the same images, views, masks, widths, depths, tokens, batch and precision; the two libraries' own mask samplers
are replaced by ours so that the numbers of context and predicted tokens are equal. Not equal, for it cannot be set:
stable-pretraining's predictor has heads of 64 channels (ours and lightly's: 32; the FLOPs are the same) and its loss is
smooth L1. The libraries' teachers move by their own functions; their AdamW is PyTorch's default, as in their examples.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.sizes import batch_of, grid_of
from benchmarks.timing import Contender
from benchmarks.twin import Twin, TwinTraining
from iwm.actions.views import Views, make_views
from iwm.config import Config
from iwm.model.masks import Masks, sample_masks
from iwm.model.vit import head_count
from iwm.runtime.devices import Session
from iwm.training.step import Training

Loss = Callable[[Views, Masks], Tensor]


def _start(settings: Config) -> Training:
    return Training.start(settings, 100, Session.of(settings.speed))


def ours(settings: Config) -> Contender:
    """Training.step as `iwm pretrain` runs it."""
    training = _start(settings)
    batches = [batch_of(settings, step) for step in range(2)]
    training.step(batches[0])
    return Contender("iwm", lambda: training.step(batches[1]), settings.optim.batch_size)


def twin(settings: Config) -> Contender:
    training = _start(settings)
    plain = TwinTraining(Twin(training.model), training.schedule, training.session.precision)
    views_of = _views(settings, training)
    return Contender("plain twin", lambda: plain.step(1, *views_of()), settings.optim.batch_size)


def lightly(settings: Config) -> Contender:
    """lightly's I-JEPA pieces put together as in its I-JEPA example. Raises ImportError where it is missing."""
    modules = importlib.import_module("lightly.models.modules")
    predictors = importlib.import_module("lightly.models.modules.ijepa_timm")
    tools = importlib.import_module("lightly.models.utils")
    s, training = settings.predictor, _start(settings)
    student = modules.MaskedVisionTransformerTIMM(vit=_timm(settings)).to(training.session.device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    predictor = predictors.IJEPAPredictorTIMM(
        num_patches=grid_of(settings)[0] ** 2,
        depth=s.depth,
        mlp_dim=settings.encoder.width,
        predictor_embed_dim=s.width,
        num_heads=head_count(s.width),
        mlp_ratio=s.mlp_ratio,
    ).to(training.session.device)

    def loss(views: Views, masks: Masks) -> Tensor:
        with torch.no_grad():
            target = teacher.encode(views.target)
            target = tools.apply_masks(F.layer_norm(target, target.shape[-1:]), [masks.predicted])
        context = student.encode(views.source, idx_keep=masks.context)
        return F.mse_loss(predictor(context, [masks.context], [masks.predicted]), target)

    trained = [p for module in (student, predictor) for p in module.parameters() if p.requires_grad]
    step = _step(settings, training, trained, loss, lambda: tools.update_momentum(student, teacher, m=0.996))
    return Contender("lightly I-JEPA", step, settings.optim.batch_size)


def stable_pretraining(settings: Config) -> Contender:
    """stable-pretraining's IJEPA without its Lightning loop. Raises ImportError where it is missing."""
    methods = importlib.import_module("stable_pretraining.methods.ijepa")
    importlib.import_module("loguru").logger.disable("stable_pretraining")
    masking = importlib.import_module("stable_pretraining.backbone").IJEPAMaskOutput
    training = _start(settings)
    model: Any = methods.IJEPA(
        _timm(settings), predictor_embed_dim=settings.predictor.width, predictor_depth=settings.predictor.depth
    )
    model.to(training.session.device).train()
    given: list[Masks] = []

    class Given(nn.Module):
        def forward(self, *_: object) -> object:
            return masking(context_idx=given[0].context, target_idx=given[0].predicted)

    model.masking = Given()

    def loss(views: Views, masks: Masks) -> Tensor:
        given[:] = [masks]
        return model(views.source).loss

    trained = [p for p in model.parameters() if p.requires_grad]
    step = _step(settings, training, trained, loss, model.encoder.update_teacher)
    note = (
        f"predictor heads of 64: {max(1, settings.predictor.width // 64)}, ours {head_count(settings.predictor.width)}"
    )
    return Contender("stable-pretraining I-JEPA", step, settings.optim.batch_size, note)


LIBRARIES = {"lightly": lightly, "stable-pretraining": stable_pretraining}


def _timm(settings: Config) -> VisionTransformer:
    s = settings.encoder
    return VisionTransformer(
        img_size=settings.data.image_size,
        patch_size=s.patch_size,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        fc_norm=False,
        embed_dim=s.width,
        depth=s.depth,
        num_heads=s.heads,
        mlp_ratio=s.mlp_ratio,
    )


def _views(settings: Config, training: Training) -> Callable[[], tuple[Views, Masks]]:
    """The same views and masks, made anew in every step as ours are."""
    batch, space, device = batch_of(settings, 1), training.model.space, training.session.device

    def make() -> tuple[Views, Masks]:
        views = make_views(batch.images, space, settings.actions, 0, 1, batch.indices, device)
        return views, sample_masks(settings.masks, training.model.grid, 0, 1, batch.indices, device)

    return make


def _step(
    settings: Config, training: Training, trained: list[nn.Parameter], loss: Loss, ema: Callable[[], object]
) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=settings.optim.weight_decay)
    views_of = _views(settings, training)

    def step() -> None:
        views, masks = views_of()
        with training.session.autocast():
            value = loss(views, masks)
        optimiser.zero_grad()
        value.backward()
        if settings.optim.clip:
            torch.nn.utils.clip_grad_norm_(trained, settings.optim.clip)
        optimiser.step()
        ema()

    return step
