"""One number of a sweep's cell, by the function of its own verb."""

from typing import Any

from iwm.config import Config
from iwm.evaluation.tasks import finetune, probes
from iwm.evaluation.tasks.fitting import Schedule
from iwm.evaluation.world import mrr

NEEDS_PREDICTOR = ("world", "predictor_finetuning")
"""Evaluations that a joint embedding cannot be asked."""


def measure(name: str, run: str, data: str, val: str, settings: Config, asked: dict[str, Any]) -> dict[str, Any]:
    """One evaluation of a cell by the function of its own verb; returns the written result."""
    common: dict[str, Any] = {"val": val, "seed": settings.run.seed, "speed": settings.speed}
    if name == "world":
        return mrr.world(run, data, **asked, **common)
    if name == "linear":
        return probes.probe(run, data, "linear", **asked, **common)
    if name == "attentive":
        schedule = Schedule(epochs=asked["epochs"])
        return probes.probe(
            run, data, "attentive", settings=probes.ProbeSettings(schedule=schedule), baselines=False, **common
        )
    return finetune.finetune(run, data, "predictor", "pretrained", settings=finetune_settings(asked), **common)


def finetune_settings(asked: dict[str, Any]) -> finetune.FinetuneSettings:
    """The settings of the predictor finetuning. Raises UserError for rates that are none."""
    schedule = Schedule(epochs=asked["epochs"])
    return finetune.FinetuneSettings(views=asked["views"], lrs=asked["lrs"], ratios=asked["ratios"], schedule=schedule)
