"""Named configurations as plain functions. `imagenet-*` are the paper's exactly; the small ones are sizes of one
small-data recipe, whose differences from the paper were tried one by one (docs/lab-notes.md)."""

from collections.abc import Callable
from dataclasses import replace

from rich.table import Table

from iwm.config import Actions, Config, Data, Encoder, Masks, Objective, Optim, Predictor, Run, Speed, did_you_mean
from iwm.errors import UserError
from iwm.log import console
from iwm.plan import cost


def small(image_size: int, patch_size: int, epochs: int) -> Config:
    """The small-data recipe: 10,000 images and up, on a CPU or one GPU.

    Against the paper's: all positions predicted, targets averaged over all blocks and normalised per channel over the
    batch, light variance and covariance terms, every view jittered, AdaLN conditioning, a shallow predictor wider than
    the encoder that is asked for three positions in eight at a time, Glorot/He initialisation, EMA from 0.99, small
    batches.
    """
    return Config(
        data=Data(image_size=image_size),
        actions=Actions(jitter_probability=1.0),
        masks=Masks(predict="all", queries=0.375),
        encoder=Encoder(patch_size=patch_size, width=192, depth=4, heads=6, init="xavier"),
        predictor=Predictor(depth=2, width=256, conditioning="adaln", init="xavier"),
        objective=Objective(target_norm="batch", target_layers=4, variance=0.1, covariance=0.004),
        optim=Optim(
            epochs=epochs,
            batch_size=32,
            lr=1.5e-3,
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
        speed=Speed(threads=1),  # 252 images/s; 203 on two: products so small do not pay for a second
        run=Run(out="runs/demo", log_every=200, save_every=500),
    )


def cifar10() -> Config:
    """CIFAR-10 at 32 px, about an hour on two CPU cores."""
    return small(image_size=32, patch_size=4, epochs=7)


def imagenet(width: int, depth: int, heads: int, predictor_depth: int, predictor_width: int) -> Config:
    """The paper's recipe: ImageNet-1k, 224 px, patches of 16, 300 epochs at batch 2048, feature conditioning."""
    return Config(
        encoder=Encoder(width=width, depth=depth, heads=heads),
        predictor=Predictor(depth=predictor_depth, width=predictor_width),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "cifar10": cifar10,
    "imagenet-vitb16-equi": lambda: imagenet(768, 12, 12, 18, 384),
    "imagenet-vitb16-inv": lambda: imagenet(768, 12, 12, 12, 384),
    "imagenet-vitl16": lambda: imagenet(1024, 24, 16, 36, 512),
}
"""Every recipe by its name on the command line."""


def get(name: str) -> Config:
    """The recipe of that name. Raises UserError with the nearest known name."""
    if name not in RECIPES:
        raise UserError(f"There is no recipe '{name}'; {did_you_mean(name, RECIPES)}")
    return replace(RECIPES[name](), recipe=name)


def show() -> None:
    """Print all recipes with their sizes and cost."""
    table = Table(title="Recipes")
    for column in ("recipe", "image", "encoder", "IWM(depth, width)", "conditioning", "epochs x batch", "GFLOPs/image"):
        table.add_column(column)
    for name in RECIPES:
        s = get(name)
        c = cost(s)
        e, p = s.encoder, s.predictor
        table.add_row(
            name,
            f"{s.data.image_size} px / {e.patch_size}",
            f"{e.depth} x {e.width} ({c.encoder_parameters / 1e6:.1f} M)",
            f"{p.depth} x {p.width} ({c.predictor_parameters / 1e6:.1f} M)",
            p.conditioning,
            f"{s.optim.epochs} x {s.optim.batch_size}",
            f"{c.train_flops / 1e9:.2f}",
        )
    console.print(table)
    console.print(
        "GFLOPs/image: one image's share of a training step. Start one: iwm pretrain RECIPE --data.source S --out RUN"
    )
