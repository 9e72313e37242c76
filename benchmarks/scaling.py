"""The numbers of docs/scaling.md, derived from the recipes' sizes: `python -m benchmarks.scaling`.

Nothing here is measured but what the constants say; each names where it comes from.
"""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from iwm import recipe_book
from iwm.config import Config, Speed
from iwm.data.crops import least_side, random_crops
from iwm.data.sources import open_pictures
from iwm.model.cost import cost
from iwm.model.flops import block_parameters, patch_count
from iwm.model.masks import dropped_count
from iwm.runtime import devices
from iwm.runtime.console import console

GB, TB = 1e9, 1e12
RATE = 238e12
"""FLOPs a second of one H100: ViT-B/16 in compiled blocks (docs/gpu.md)."""
SAVED = 36
"""Bytes that a block keeps of each token and channel for its backward pass, under bf16 autocast (docs/scaling.md)."""
LINK = {"NVLink": 450 * GB, "InfiniBand": 50 * GB}
"""Bytes a second out of one GPU: NVLink 4 of an H100; a 400 Gb/s adapter for each GPU."""
PICTURE = 110e3
"""Bytes of an ImageNet JPEG on average: 138 GB / 1.28 million (Russakovsky et al. 2015, the task's archives)."""
DISK = 2 * GB
"""Bytes a second that one process writes to a shared disk."""
BETWEEN_FAILURES = 16384 * 54 * 24 / 419 * 3600
"""GPU-seconds between unexpected interruptions: 419 in 54 days on 16,384 H100 (Llama Team 2024, section 3.3.4)."""
RESTART = 300.0
"""Seconds until a job that was ended trains again."""


@dataclass(frozen=True)
class Plan:
    """A training on several GPUs."""

    recipe: str
    gpus: int
    images: float
    epochs: float
    batch: int
    link: str

    @property
    def settings(self) -> Config:
        return recipe_book.get(self.recipe)

    def rows(self) -> list[tuple[str, str]]:
        """What the documentation says of it, with the unit."""
        s, c = self.settings, cost(self.settings)
        trained, teacher = c.encoder_parameters + c.predictor_parameters, c.encoder_parameters
        side = s.data.image_size // s.encoder.patch_size
        patches, context = patch_count(s), patch_count(s) - dropped_count(s.masks, (side, side))
        each = self.batch / self.gpus
        channels = s.encoder.depth * s.encoder.width * context + s.predictor.depth * s.predictor.width * patches
        activations = SAVED * channels
        block = 4 * block_parameters(s.encoder.width, s.encoder.mlp_ratio)
        step = each * c.train_flops / RATE
        per_second = self.batch / step
        ring = (self.gpus - 1) / self.gpus
        ddp, fsdp = 2 * ring * 4 * trained, 3 * ring * 4 * trained + ring * 4 * teacher
        steps = self.images * self.epochs / self.batch
        state = 12 * trained + 4 * teacher
        write, between = state / DISK, BETWEEN_FAILURES / self.gpus
        period = math.sqrt(2 * write * between)
        lost = write / period + period / (2 * between) + RESTART / between
        hours = steps * step / 3600
        return [
            ("trained parameters P", f"{trained / 1e6:.1f} M"),
            ("teacher parameters T", f"{teacher / 1e6:.1f} M"),
            ("context tokens of all", f"{context} of {patches}"),
            ("images a GPU b", f"{each:.0f}"),
            ("weights, gradients, moments", f"{16 * trained / GB:.2f} GB"),
            ("teacher", f"{4 * teacher / GB:.2f} GB"),
            ("the same, sharded", f"{(16 * trained + 4 * teacher) / self.gpus / GB:.3f} GB"),
            ("one gathered encoder block", f"{block / GB:.3f} GB"),
            ("activations of an image", f"{activations / 1e6:.1f} MB"),
            ("activations of b images", f"{each * activations / GB:.1f} GB"),
            ("in all, DDP", f"{(16 * trained + 4 * teacher + each * activations) / GB:.1f} GB"),
            ("FLOPs of an image", f"{c.train_flops / 1e9:.0f} G"),
            ("time of a step", f"{1e3 * step:.0f} ms"),
            ("images a second", f"{per_second:,.0f}"),
            ("steps", f"{steps:,.0f}"),
            ("hours", f"{hours:.1f}"),
            ("sent a step, DDP", f"{ddp / GB:.2f} GB, {1e3 * ddp / LINK[self.link]:.0f} ms by {self.link}"),
            ("sent a step, FSDP2", f"{fsdp / GB:.2f} GB, {1e3 * fsdp / LINK[self.link]:.0f} ms by {self.link}"),
            ("read, all GPUs", f"{per_second * PICTURE / GB:.2f} GB/s"),
            ("read, 8 GPUs", f"{8 * per_second / self.gpus * PICTURE / GB:.2f} GB/s"),
            ("decoded, one GPU", f"{per_second / self.gpus:,.0f} images/s"),
            ("pictures on disk", f"{self.images * PICTURE / TB:.2f} TB"),
            ("a checkpoint", f"{state / GB:.2f} GB, {write:.1f} s"),
            ("between failures", f"{between / 3600:,.0f} hours"),
            ("failures in the run", f"{hours * 3600 / between:.3f}"),
            ("checkpoint period", f"{period:,.0f} s, {period / step:,.0f} steps"),
            ("time lost", f"{lost:.2%}"),
        ]


PLANS = {
    "ViT-B/16, ImageNet-1k, 8 GPUs": Plan("imagenet-vitb16-equi", 8, 1_281_167, 300, 2048, "NVLink"),
    "ViT-L/16, 10^9 images, 512 GPUs": Plan("imagenet-vitl16", 512, 1e9, 10, 32768, "InfiniBand"),
}


def table() -> list[str]:
    """The plans beside each other, in Markdown."""
    columns = [dict(plan.rows()) for plan in PLANS.values()]
    lines = [f"| | {' | '.join(PLANS)} |", "|---|---|---|"]
    return lines + [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]


def pictures_per_core(count: int = 256) -> tuple[float, float]:
    """JPEGs of 500 x 375 px that one core decodes and crops to 224 px in a second of its own time; their bytes."""
    generator = np.random.default_rng(0)
    originals = open_pictures("sample", 224)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(16):
            picture = Image.fromarray(originals.load(number).permute(1, 2, 0).numpy()).resize((500, 375))
            noisy = np.asarray(picture) + generator.normal(0, 14, (375, 500, 3))  # as many bytes as a photo's
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(f"{folder}/{number}.jpg", quality=92)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 16
        images, area = open_pictures(folder, 224), (0.3, 1.0)
        with devices.threads(Speed(threads=1)):
            since = 0.0
            for step in range(32 + count):
                since = time.process_time() if step == 32 else since
                row = np.array([step % 16])
                random_crops([images.load(step % 16, least_side(224, area))], 224, area, 0.5, 0, step, row, "c")
            return count / (time.process_time() - since), size


if __name__ == "__main__":
    console.print("\n".join(table()), soft_wrap=True, markup=False, highlight=False)
    rate, size = pictures_per_core()
    console.print(
        f"one core ({devices.processor_name()}): {rate:.0f} JPEGs/s of {size / 1e3:.0f} kB, cropped to 224 px"
    )
