"""What a sweep is asked: which settings are varied, and what every cell is trained on and measured by.

Plain values only: the command line takes its options from here and starts without PyTorch.
"""

from dataclasses import dataclass
from typing import Any, Literal

from iwm.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What is varied; lists as typed, separated by commas."""

    conditionings: str = "none,sequence,feature,adaln"
    levels: str = "jitter,destructive,strong"
    """Difficulties of the action."""
    predictors: str = ""
    """Sizes, DEPTHxWIDTH (4x96,4x192); by default the recipe's own and one half as deep."""
    design: Literal["tables", "full"] = "tables"
    """tables: every conditioning at the reference, and every level with every predictor; full: all combinations."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every cell is trained on and measured by; an evaluation with a budget of 0 is left out."""

    images: int = 0
    """Training images of the pretraining, a seeded choice; 0: all."""
    eval_data: str = ""
    """Labelled source of the evaluations; by default that of the pretraining."""
    val: str = ""
    """Source of the images that are reported on; by default the source's own."""
    eval_images: tuple[int, int] = (0, 0)
    """Training and test images of the evaluations, a seeded choice; 0: all."""
    world_images: int = 64
    """Images of the MRR; 0 leaves it out."""
    bank: int = 256
    linear: bool = True
    attentive_epochs: int = 20
    """0 leaves it out."""
    finetune_epochs: int = 20
    """Of the predictor; 0 leaves it out."""
    finetune_views: int = 4
    finetune_lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    finetune_ratios: tuple[float, ...] = (0.1, 1.0)

    def __post_init__(self) -> None:
        for name in ("images", "world_images", "attentive_epochs", "finetune_epochs"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 0 or more.")
        if min(self.eval_images) < 0:
            raise UserError("--eval-images takes two numbers, training and test images, 0 or more.")
        if self.world_images and self.bank < 2:
            raise UserError(f"A bank of {self.bank} entries ranks nothing; give --bank 2 or more.")
        if not (self.world_images or self.needs_labels):
            raise UserError("Nothing is left to measure; leave at least one evaluation in.")

    @property
    def needs_labels(self) -> bool:
        return self.linear or self.attentive_epochs > 0 or self.finetune_epochs > 0

    def evaluations(self, controls: bool) -> dict[str, dict[str, Any]]:
        """Name and settings of every evaluation; `controls` adds random encoder and raw pixels to the linear probe."""
        found: dict[str, dict[str, Any]] = {}
        if self.world_images:
            found["world"] = {"images": self.world_images, "bank": self.bank}
        if self.linear:
            found["linear"] = {"baselines": controls}
        if self.attentive_epochs:
            found["attentive"] = {"epochs": self.attentive_epochs}
        if self.finetune_epochs:
            tuned = ("epochs", "views", "lrs", "ratios")
            found["predictor_finetuning"] = {name: getattr(self, f"finetune_{name}") for name in tuned}
        return found
