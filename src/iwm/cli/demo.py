"""`iwm demo`: the whole use on the embedded images, in minutes on two CPU cores.

Pretrain on the photos and the training objects without their labels, measure the world model with its controls, probe
the encoder, finetune the predictor against its random twin, and write the page.
"""

from dataclasses import replace
from pathlib import Path

from iwm import recipe_book
from iwm.evaluation.tasks import finetune, probes
from iwm.evaluation.tasks.fitting import Schedule
from iwm.evaluation.world import mrr
from iwm.reports.page import write
from iwm.runtime.console import console
from iwm.training import loop

OBJECTS = "sample-objects"
"""The labelled source everything is evaluated on; its test images share no photo with training."""

FINETUNING = finetune.FinetuneSettings(
    lrs=(1e-3, 3e-3), ratios=(1.0,), views=2, schedule=Schedule(epochs=5, search_epochs=1)
)
"""A short finetuning with the same grid for both predictors (ratio 0.1 never won in so few steps); `iwm finetune` alone
takes longer and gets further."""


def run(out: Path, *, quick: bool = False, seed: int = 0) -> Path:
    """Write a complete run to `out`; returns the report's path. An interrupted demo goes on where it stopped."""
    settings = recipe_book.get("demo")
    settings = replace(settings, run=replace(settings.run, out=str(out), seed=seed))
    if quick:
        settings = replace(settings, optim=replace(settings.optim, epochs=1), run=replace(settings.run, log_every=50))
    console.rule("1 of 4: pretraining, unlabelled")
    loop.pretrain(settings)
    console.rule("2 of 4: how good is the world model?")
    mrr.world(str(out), OBJECTS, images=8 if quick else 64, seed=seed)
    console.rule("3 of 4: what does the encoder know?")
    probes.probe(str(out), OBJECTS, "linear", seed=seed)
    probes.probe(str(out), OBJECTS, "knn", seed=seed)
    console.rule("4 of 4: finetuning the predictor, pretrained and random")
    tuning = FINETUNING if not quick else replace(FINETUNING, schedule=replace(FINETUNING.schedule, epochs=1))
    for kind in ("pretrained", "random"):
        finetune.finetune(str(out), OBJECTS, "predictor", kind, seed=seed, settings=tuning)
    page = write(out)
    console.print(f"[bold]Open {page}", soft_wrap=True)
    return page
