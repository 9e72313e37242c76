"""Segment: learn the class of every pixel, from the encoder's blocks or the predictor's; mIoU and overlay pictures."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from iwm.runtime import errors
from iwm.runtime.bounds import AtLeast, Rising
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Continuation, Measured, Schedule, Source, Tuning

WAYS = ("head", "predictor", "encoder", "both")


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(Tuning):
    """What a segmentation's numbers depend on, beside the run and the data."""

    train: str = "head"
    """head, predictor, encoder, or both (encoder and predictor end to end)."""
    head: Literal["linear", "upernet"] = "upernet"
    """A linear layer, or UperNet."""
    channels: Annotated[int, AtLeast(0)] = 0
    """Channels of UperNet; 0: 128 for crops below 224 px, else 512."""
    ignore_index: int = 255
    """Mask value of pixels that are neither learned nor counted; -1: none."""
    scales: Annotated[tuple[float, float], Rising()] = (0.5, 2.0)
    """Smallest and largest scale of the crops."""
    views: int = 4
    """Crops of each training image, made once; 0: a new one in every epoch."""
    schedule: Annotated[Schedule, arg(name="")] = field(default_factory=lambda: Schedule(batch_size=16))

    @property
    def augmentation(self) -> str:
        if not self.views:
            return "a fresh crop of an image every epoch"
        return f"{self.views} crop{'s' * (self.views > 1)} of an image, drawn once"

    def __post_init__(self) -> None:
        if self.train not in WAYS:
            raise UserError(f"There is no way to train '{self.train}'; {errors.did_you_mean(self.train, WAYS)}")
        super().__post_init__()
        self.schedule.require_no_mixing("and segmentation has one of every pixel")
        if self.head == "upernet" and self.schedule.batch_size < 2:
            raise UserError("--batch-size 1 is too few for UperNet's batch norm; give 2 or more, or --head linear.")


@dataclass(frozen=True, kw_only=True)
class Segment(SegmentSettings, Continuation, Measured, Source):
    data: str
    """Images and masks of the same names: folders images/ and annotations/ (or masks/, labels/...), train/ and
    train_masks/, or 1.tif beside 1_mask.tif; an .npz of images and masks; or sample-objects (docs/sources.md)."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of crops and windows; 0: the images' shorter side, at most 512 and at most 4 times the run's."""
    baselines: bool = True
    """Also the same training with nothing pretrained."""


OPTIONS = Segment
WORK = "iwm.evaluation.tasks.segmentation:segment"
RANKS = True
PLAN = "iwm.evaluation.tasks.estimate:segment"
EXAMPLE = "iwm segment runs/mine --data path/to/masks --train head"
