"""What every cell of a sweep is trained on and measured by, each evaluation by the function of its own verb."""

from dataclasses import dataclass
from typing import Any

from iwm.config import Config
from iwm.errors import UserError
from iwm.evaluation import finetune, probes, quality
from iwm.evaluation.fitting import Schedule

NEEDS_PREDICTOR = ("world", "predictor_finetuning")
"""Evaluations that a joint embedding cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every cell is trained on and measured by; an evaluation with a budget of 0 is left out."""

    images: int = 0
    """Training images of the pretraining, a seeded choice; 0: all."""
    eval_data: str = ""
    """Labelled source of the evaluations; empty: that of the pretraining."""
    val: str = ""
    eval_images: tuple[int, int] = (0, 0)
    """Training and test images of the evaluations, a seeded choice; 0: all."""
    world_images: int = 64
    bank: int = 256
    linear: bool = True
    attentive_epochs: int = 20
    finetune_epochs: int = 20
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
        if self.finetune_epochs:
            tuning(self.evaluations(controls=False)["predictor_finetuning"])  # checks the rates before hours pass
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


def measure(name: str, run: str, data: str, val: str, settings: Config, asked: dict[str, Any]) -> dict[str, Any]:
    """One evaluation of a cell by the function of its own verb; returns the written result."""
    common: dict[str, Any] = {"val": val, "seed": settings.run.seed, "speed": settings.speed}
    if name == "world":
        return quality.world(run, data, **asked, **common)
    if name == "linear":
        return probes.probe(run, data, "linear", **asked, **common)
    if name == "attentive":
        schedule = Schedule(epochs=asked["epochs"])
        return probes.probe(
            run, data, "attentive", settings=probes.ProbeSettings(schedule=schedule), baselines=False, **common
        )
    return finetune.finetune(run, data, "predictor", "pretrained", settings=tuning(asked), **common)


def tuning(asked: dict[str, Any]) -> finetune.FinetuneSettings:
    """The settings of the predictor finetuning. Raises UserError for rates that are none."""
    schedule = Schedule(epochs=asked["epochs"])
    return finetune.FinetuneSettings(views=asked["views"], lrs=asked["lrs"], ratios=asked["ratios"], schedule=schedule)
