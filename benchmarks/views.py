"""Source views a second: random resized crop and flip, then jitter, grayscale, blur and solarize with the paper's
probabilities, from decoded uint8 images in memory.

Ours crops on the host and does the photometry batched on the device; torchvision v2 does everything an image at a time
on the host; kornia everything batched on the device, on float images. Pictures are twice as large as the view (32 px:
as large). All three blur with a kernel that reaches 3 times the largest sigma.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.timing import Contender, Options, compare, show
from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.data.crops import random_crops

IMAGES = {32: 256, 64: 128, 224: 32}
AREA = (0.3, 1.0)


def _ours(pictures: Tensor, size: int, device: torch.device) -> Callable[[], Tensor]:
    space = ActionSpace.from_config(config.Actions(), size)
    indices, images = np.arange(len(pictures)), list(pictures)

    def run() -> Tensor:
        crops = random_crops(images, size, AREA, 0.5, 0, 1, indices)
        parameters = space.sample(0, 1, indices, "source")
        return space.apply(crops.to(device).float().div_(255), parameters)

    return run


def _kernel(sigma: tuple[float, float]) -> int:
    return 2 * math.ceil(3 * sigma[1]) + 1


def _torchvision(pictures: Tensor, size: int, sigma: tuple[float, float], device: torch.device) -> Callable[[], Tensor]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=AREA, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(_kernel(sigma), sigma)], p=0.2),
            v2.RandomSolarize(128, 0.2),
        ]
    )
    return lambda: torch.stack([transform(picture) for picture in pictures]).to(device).float().div_(255)


def _kornia(pictures: Tensor, size: int, sigma: tuple[float, float], device: torch.device) -> Callable[[], Tensor]:
    augmentation: Any = importlib.import_module("kornia.augmentation")
    transform = torch.nn.Sequential(
        augmentation.RandomResizedCrop((size, size), scale=AREA, resample="bicubic"),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((_kernel(sigma), _kernel(sigma)), sigma, p=0.2),
        augmentation.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=0.2),
    )
    return lambda: transform(pictures.to(device).float().div_(255))


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    rows, missing = [], []
    for size, count in IMAGES.items():
        larger = size if size == 32 else 2 * size
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (count, 3, larger, larger), dtype=torch.uint8, generator=generator)
        blur = next(t for t in ActionSpace.from_config(config.Actions(), size).transformations if t.name == "blur")
        sigma = (blur.low, blur.high)
        field = [
            Contender("iwm", _ours(pictures, size, options.device), count),
            Contender("torchvision v2", _torchvision(pictures, size, sigma, options.device), count, "per image"),
        ]
        try:
            field.append(Contender("kornia", _kornia(pictures, size, sigma, options.device), count, "batched"))
        except ImportError as error:
            missing = [f"kornia did not take part: {error}. See benchmarks/__init__.py."]
        rows += compare(field, options, pixels=size)
    show("views", rows)
    return rows, missing
