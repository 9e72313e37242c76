"""One number of a sweep's cell, by its own verb."""

from typing import Any

from iwm import verbs
from iwm.config import Config
from iwm.verbs.finetune import Finetune

NEEDS_PREDICTOR = ("world", "predictor_finetuning")
"""Evaluations that a joint embedding does not have."""


def measure(name: str, run: str, data: str, val: str, settings: Config, how: dict[str, Any]) -> dict[str, Any]:
    """One evaluation of a cell by its own verb; returns the written result. `how` are its own settings."""
    common: dict[str, Any] = {"val": val, "seed": settings.run.seed, "speed": settings.speed}
    if name == "world":
        return verbs.call("world", run, data=data, **how, **common)
    if name == "predictor_finetuning":
        return verbs.find("finetune").run(finetuning(run, data, how, **common))
    baselines = {"baselines": False} if name == "attentive" else {}
    return verbs.call("probe", run, data=data, kind=name, **how, **baselines, **common)


def finetuning(run: str, data: str, how: dict[str, Any], **common: Any) -> Finetune:
    """The options of the predictor finetuning. Raises UserError for rates that are none."""
    options = verbs.find("finetune").fill(
        run=run, data=data, train="predictor", predictor="pretrained", baselines=False, **how, **common
    )
    assert isinstance(options, Finetune)
    return options
