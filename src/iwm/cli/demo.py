"""`iwm demo`: the whole use on the embedded images, in minutes on two CPU cores.

Pretrain on the photos and the training objects without their labels, measure the world model with its controls, probe
the encoder, finetune the predictor against its random twin, and write the page.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from iwm import recipe_book, verbs
from iwm.reports import page
from iwm.runtime.console import console
from iwm.training import loop
from iwm.verbs.demo import Demo

OBJECTS = "sample-objects"
"""The labelled source everything is evaluated on; its test images share no photo with training."""

FINETUNING: dict[str, Any] = {
    "lrs": (1e-3, 3e-3), "ratios": (1.0,), "views": 2, "epochs": 5, "search_epochs": 1, "baselines": False,
}  # fmt: skip
"""A short finetuning with the same grid for both predictors (ratio 0.1 never won in so few steps); `iwm finetune` alone
takes longer and gets further."""


def demo(o: Demo) -> Path:
    """Write a complete run; returns the report's path. An interrupted demo goes on where it stopped."""
    out = Path(o.out or ("runs/demo-quick" if o.quick else "runs/demo")).expanduser()
    settings = recipe_book.get("demo")
    settings = replace(settings, run=replace(settings.run, out=str(out), seed=o.seed))
    if o.quick:
        settings = replace(settings, optim=replace(settings.optim, epochs=1), run=replace(settings.run, log_every=50))
    shared: dict[str, Any] = {"run": out, "data": OBJECTS, "seed": o.seed}
    console.rule("1 of 4: pretraining, unlabelled")
    loop.pretrain(settings)
    console.rule("2 of 4: how good is the world model?")
    verbs.call("world", images=8 if o.quick else 64, **shared)
    console.rule("3 of 4: what does the encoder know?")
    verbs.call("probe", kind="linear", **shared)
    verbs.call("probe", kind="knn", **shared)
    console.rule("4 of 4: finetuning the predictor, pretrained and random")
    tuning = FINETUNING | ({"epochs": 1} if o.quick else {})
    for start in ("pretrained", "random"):
        verbs.call("finetune", train="predictor", predictor=start, **tuning, **shared)
    report = page.write(out)
    console.print(f"[bold]Open {report}", soft_wrap=True)
    return report
