"""Named configurations as plain functions. `imagenet-*` are the paper's exactly; the small ones are sizes of one
small-data recipe, whose differences from the paper were tried one by one (docs/lab-notes.md). FAMILY-SIZE is another
family at one of these sizes: a function that changes the size's configuration (docs/families.md).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from iwm.config import Actions, Config, Data, Encoder, Masks, Objective, Optim, Predictor, Run, Speed, Views
from iwm.runtime.errors import UserError, did_you_mean


def small(image_size: int, patch_size: int, epochs: int) -> Config:
    """The small-data recipe: 10,000 images and up, on a CPU or one GPU.

    Against the paper's: all positions predicted, targets averaged over all blocks and normalised per channel over the
    batch, light variance and covariance terms, every view jittered, AdaLN conditioning, a shallow predictor wider than
    the encoder that is asked for three positions in eight at a time, every fourth step on clean and whole sources,
    Glorot/He initialisation, EMA from 0.99, small batches, Muon instead of AdamW. `demo` and `imagenette` say below
    where they differ, `cifar10` in its masks; `imagenette` averages the last 4 of its 12 blocks.
    """
    return Config(
        data=Data(image_size=image_size),
        actions=Actions(jitter_probability=1.0),
        masks=Masks(predict="all", queries=0.375, whole=0.25),
        encoder=Encoder(patch_size=patch_size, width=192, depth=4, heads=6, init="xavier"),
        predictor=Predictor(depth=2, width=256, conditioning="adaln", init="xavier"),
        objective=Objective(target_norm="batch", target_layers=4, variance=0.1, covariance=0.004),
        optim=Optim(
            kind="muon",
            epochs=epochs,
            batch_size=32,
            lr=3e-3,
            lr_batch=32,
            lr_start=1e-4,
            lr_final=1e-5,
            warmup_epochs=1,
            ema=0.99,
            weight_decay=0.04,
            weight_decay_final=0.1,
            stretch=1.0,
            clip=1.0,
        ),
    )


def demo() -> Config:
    """The embedded photos and objects, minutes on two CPU cores: a small model takes many steps in them."""
    base = small(image_size=64, patch_size=16, epochs=10)
    return replace(
        base,
        data=replace(base.data, source="sample,sample-objects"),
        encoder=replace(base.encoder, width=128, heads=4),
        masks=replace(base.masks, queries=1.0),
        predictor=replace(base.predictor, depth=4, width=128),
        speed=Speed(threads=1),  # products so small do not pay for a second
        run=Run(out="runs/demo", log_every=200, save_every=500),
    )


def cifar10() -> Config:
    """CIFAR-10 at 32 px, about 40 minutes on one CPU core. A quarter of the patches is seen, drawn one by one: at equal
    time two points more than blocks that leave half of them (docs/small-data.md)."""
    base = small(image_size=32, patch_size=4, epochs=7)
    return replace(base, masks=replace(base.masks, sampler="random"))


def eurosat() -> Config:
    """EuroSAT's satellite pictures at 64 px, patches of 8: as many tokens and, of all 27,000, views as `cifar10`."""
    return small(image_size=64, patch_size=8, epochs=14)


def imagenette() -> Config:
    """Imagenette at 128 px on one GPU: an encoder of ViT-S's size. Not run so far."""
    base = small(image_size=128, patch_size=16, epochs=100)
    return replace(
        base,
        encoder=replace(base.encoder, width=384, depth=12),
        predictor=replace(base.predictor, width=384, depth=6),
        optim=replace(base.optim, batch_size=256, lr=2e-3, lr_batch=256, warmup_epochs=5),
    )


def on_encoder() -> Config:
    """A predictor on an encoder of others that stands still (`--encoder.name`), minutes on a CPU for a thousand photos:
    the change of the tokens of a lower block, in units of that change, learned from pairs of views encoded once.
    """
    base = small(image_size=112, patch_size=14, epochs=80)
    return replace(
        base,
        masks=Masks(sampler="none", predict="all"),
        encoder=Encoder(train="none", layer=4, patch_size=14, width=384, depth=12, heads=6),
        predictor=replace(base.predictor, residual=True),
        objective=Objective(target_norm="change"),
        run=Run(log_every=200, save_every=500),
    )


def invariant(base: Config) -> Config:
    """The invariant end of the spectrum at small scale, like the paper's jitter-only models: no destructive
    transformation, a predictor half as deep that is told the action by its queries alone."""
    return replace(
        base,
        actions=replace(base.actions, level="jitter"),
        predictor=replace(base.predictor, depth=base.predictor.depth // 2, conditioning="feature"),
    )


def imagenet(width: int, depth: int, heads: int, predictor_depth: int, predictor_width: int) -> Config:
    """The paper's recipe: ImageNet-1k, 224 px, patches of 16, 300 epochs at batch 2048, feature conditioning."""
    return Config(
        encoder=Encoder(width=width, depth=depth, heads=heads),
        predictor=Predictor(depth=predictor_depth, width=predictor_width),
    )


SIZES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "cifar10": cifar10,
    "eurosat": eurosat,
    "imagenette": imagenette,
    "imagenet-vitb16": lambda: imagenet(768, 12, 12, 18, 384),
}


# ---- the other families --------------------------------------------------------------------------------------------


def ijepa_style(base: Config) -> Config:
    """I-JEPA's masking on our objective: one crop without photometry, nothing to be told, dropped patches predicted.

    Targets, their normalisation and the spread terms are those of the size; `ijepa_published` has I-JEPA's.
    """
    return replace(
        base,
        actions=_clean(base.actions),
        masks=replace(base.masks, predict="dropped", queries=1.0, whole=0.0),
        predictor=replace(base.predictor, conditioning="none"),
    )


def ijepa_world(base: Config) -> Config:
    """An encoder that learns as in `ijepa_style`, and a predictor that also learns changes: in a quarter of the steps
    it sees whole, unchanged sources and is told how the targets differ; these steps leave the encoder where it is.

    So of as many steps a quarter less teach the encoder than in `ijepa_style` (docs/families.md says what that costs).
    """
    return replace(
        base,
        actions=replace(base.actions, clean="both"),
        masks=replace(base.masks, predict="dropped", queries=1.0, whole=0.25),
        objective=replace(base.objective, whole_gradient=0.0),
    )


def ijepa_published(base: Config) -> Config:
    """I-JEPA as published (Assran et al. 2023): the last block's tokens, normalised token by token, by smooth-L1, no
    spread terms, crops without flip; 4 target blocks of 0.15-0.2 and a context block of 0.85-1 of the image.

    Not the paper's: the 4 targets are predicted together, not one by one; and below ImageNet's size everything else is
    that of the size: the grid, initialisation, optimiser, rate, schedules and EMA (`--optim.*`).
    """
    return replace(
        ijepa_style(base),
        data=replace(base.data, flip=0.0),
        masks=Masks(sampler="ijepa", context_area=(0.85, 1.0)),
        objective=Objective(error="smooth_l1"),
    )


def mae(base: Config) -> Config:
    """MAE (He et al. 2022): three quarters of the patches dropped at random, their normalised pixels predicted.

    The crops' area of 0.2-1, the betas (0.9, 0.95) and Glorot's initialisation are the authors'.
    """
    settings = _generative(base, Objective(kind="pixels", target_norm="token"))
    return replace(
        settings,
        data=replace(base.data, crop_area=(0.2, 1.0)),
        actions=_clean(base.actions),
        masks=Masks(sampler="random", ratio=0.75),
        predictor=replace(settings.predictor, conditioning="none"),
    )


def pixel_world(base: Config) -> Config:
    """A generative world model: told the action, it undoes the photometric change in pixels, dropped patches included.

    Pixels are normalised per channel over the data: normalised patch by patch they would lose brightness and contrast,
    which are affine there, and the action would have little left to say.
    """
    return _generative(base, Objective(kind="pixels", target_norm="batch"))


def moco(base: Config) -> Config:
    """MoCo v3 (Chen, Xie and He 2021): InfoNCE between crops of 0.08-1 of the area, BYOL's augmentations, the patch
    projection left as drawn."""
    return _joint(base, Objective(kind="joint", invariance="contrastive", freeze_patches=True))


def byol(base: Config) -> Config:
    """BYOL (Grill et al. 2020): the embedding of the other crop regressed; crops and augmentations as in `moco`."""
    return _joint(base, Objective(kind="joint", invariance="regression"))


def _clean(actions: Actions) -> Actions:
    """No photometric change at all."""
    return replace(actions, level="jitter", jitter_probability=0.0)


def _adamw(optim: Optim) -> Optim:
    """The AdamW that the small recipe had before Muon, at its rate; the other families were measured with it."""
    return optim if optim.kind == "adamw" else replace(optim, kind="adamw", lr=optim.lr / 2)


def _generative(base: Config, objective: Objective) -> Config:
    """MAE's betas and initialisation, and an EMA that follows closely: it gives no targets that should be steady."""
    return replace(
        base,
        encoder=replace(base.encoder, init="xavier"),
        predictor=replace(base.predictor, init="xavier"),
        objective=objective,
        optim=replace(_adamw(base.optim), betas=(0.9, 0.95), ema=0.99, ema_final=0.999),
    )


def _joint(base: Config, objective: Objective) -> Config:
    """Independent crops, the authors' augmentations, 256 images or more to tell apart. Below 64 px no blur, as is usual
    on CIFAR; where the encoder is narrow the MLPs are a quarter as wide."""
    blur = (1.0, 0.1) if base.data.image_size >= 64 else (0.0, 0.0)
    batch = max(256, base.optim.batch_size)
    return replace(
        base,
        data=replace(base.data, crop_area=(0.08, 1.0)),
        actions=replace(base.actions, jitter_probability=0.8),
        views=Views(geometry="independent", blur=blur),
        masks=Masks(sampler="none"),
        encoder=replace(base.encoder, init="xavier"),
        objective=replace(objective, projector_width=4096 if base.encoder.width >= 384 else 1024),
        optim=replace(_adamw(base.optim), batch_size=batch, lr_batch=max(batch, base.optim.lr_batch)),
    )


FAMILIES: dict[str, Callable[[Config], Config]] = {
    "ijepa-style": ijepa_style,
    "ijepa-world": ijepa_world,
    "ijepa-published": ijepa_published,
    "mae": mae,
    "pixel-world": pixel_world,
    "moco": moco,
    "byol": byol,
}
_DECODER = {"depth": 8, "width": 512}
_OPTIM = {"batch_size": 4096, "lr": 2.4e-3, "lr_batch": 4096, "lr_start": 0.0, "lr_final": 0.0, "stretch": 1.0}
_MAE = {**_OPTIM, "epochs": 800, "weight_decay": 0.05, "weight_decay_final": 0.05, "ema": 0.999, "ema_final": 0.9999}
_MOCO = {**_OPTIM, "epochs": 300, "weight_decay": 0.1, "weight_decay_final": 0.1}
IMAGENET: dict[str, dict[str, dict[str, Any]]] = {
    "ijepa-style": {"predictor": {"depth": 6, "width": 384}},
    "ijepa-world": {},
    "ijepa-published": {"predictor": {"depth": 6, "width": 384}},
    "mae": {"predictor": _DECODER, "optim": _MAE},
    "pixel-world": {"predictor": _DECODER, "optim": _MAE},
    "moco": {"optim": {**_MOCO, "ema": 0.99}},
    "byol": {"optim": {**_MOCO, "ema": 0.996}},
}
"""What the families' own papers have at ImageNet's size, as far as AdamW and our schedules go.

MAE: 800 epochs, 1.5e-4 for 256 images at batch 4096, weight decay 0.05, a decoder of 8 x 512. MoCo v3: 300 epochs, the
same rate, weight decay 0.1, EMA from 0.99 (ours rises linearly, theirs by a cosine). BYOL's LARS has no counterpart: it
takes MoCo v3's AdamW, with which that paper trained it on vision transformers, and its own EMA from 0.996.
"""


def of_family(family: str, size: str) -> Config:
    """The configuration of FAMILY-SIZE; one whose size has a run folder gets its own."""
    base = SIZES[size]()
    settings = replace(FAMILIES[family](base), run=replace(base.run, out=base.run.out and f"runs/{family}-{size}"))
    own = IMAGENET[family] if size.startswith("imagenet-") else {}
    return replace(settings, **{group: replace(getattr(settings, group), **values) for group, values in own.items()})


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "cifar10": cifar10,
    "cifar10-inv": lambda: invariant(cifar10()),
    "eurosat": eurosat,
    "eurosat-inv": lambda: invariant(eurosat()),
    "imagenette": imagenette,
    "imagenette-inv": lambda: invariant(imagenette()),
    "on-encoder": on_encoder,
    "imagenet-vitb16-equi": lambda: imagenet(768, 12, 12, 18, 384),
    "imagenet-vitb16-inv": lambda: imagenet(768, 12, 12, 12, 384),
    "imagenet-vitl16": lambda: imagenet(1024, 24, 16, 36, 512),
    **{f"{family}-{size}": partial(of_family, family, size) for family in FAMILIES for size in SIZES},
}
"""Every recipe by its name on the command line."""


def get(name: str) -> Config:
    """The recipe of that name. Raises UserError with the nearest known name.

    `ijepa-SIZE`, as `ijepa-style-SIZE` was called before, keeps working.
    """
    former = name.replace("ijepa-", "ijepa-style-", 1)
    if name.startswith("ijepa-") and former in RECIPES:
        return replace(RECIPES[former](), recipe=name)
    if name not in RECIPES:
        raise UserError(f"There is no recipe '{name}'; {did_you_mean(name, RECIPES)}")
    return replace(RECIPES[name](), recipe=name)
