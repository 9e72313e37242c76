"""The sizes everything is measured at."""

from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch

from benchmarks.timing import Options
from iwm import config, recipe_book
from iwm.config import Config, Objective, Speed
from iwm.data.loader import Batch

PAPER_HEADS = {"vit-s": (384, 12, 6, 12, 192), "vit-b": (768, 12, 12, 18, 384)}
"""Encoder width, depth, heads and predictor depth, width at 224 px, patches of 16, the paper's settings; ViT-S is not
in the paper: its predictor keeps ViT-B's proportion (half the encoder's width)."""
BATCH = {"vit-s": (4, 8, 256), "vit-b": (2, 4, 128)}
"""Images a step: quick on a CPU, on a CPU, on a GPU. The recipes keep their own."""
NAMES = ("demo", "cifar10", *PAPER_HEADS)


def settings_of(size: str, precision: str, options: Options) -> Config:
    """The recipe of that name, or the paper's settings at that size with a batch this machine can take; AdamW for all,
    as the peers have it."""
    if size in PAPER_HEADS:
        quick, cpu, gpu = BATCH[size]
        batch = gpu if options.device.type == "cuda" else quick if options.quick else cpu
        settings = recipe_book.imagenet(*PAPER_HEADS[size])
        settings = replace(settings, optim=replace(settings.optim, batch_size=batch))
    else:
        settings = recipe_book.get(size)
        settings = replace(settings, optim=replace(settings.optim, kind="adamw"))
    device = cast(Literal["cpu", "cuda"], options.device.type)
    precision = cast(Literal["fp32", "bf16"], precision)
    threads = torch.get_num_threads()
    return replace(settings, speed=Speed(precision=precision, device=device, threads=threads, compile=options.compile))


def as_ijepa(settings: Config) -> Config:
    """The same sizes as plain I-JEPA, which is all the other libraries have: no action, token-normalised targets."""
    return replace(
        settings, predictor=replace(settings.predictor, conditioning="none"), objective=Objective(target_norm="token")
    )


def batch_of(settings: Config, step: int) -> Batch:
    """Random pictures: what they show does not change the time."""
    count, size = settings.optim.batch_size, settings.data.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(step=step, indices=np.arange(count), images=images, labels=None, waited=0.0)


def grid_of(settings: config.Config) -> tuple[int, int]:
    side = settings.data.image_size // settings.encoder.patch_size
    return side, side
