"""`iwm demo`: what an image world model does, in three steps, each of use if one stops there.

1. The model in the package imagines changes of your photos: seconds.
2. A model is trained anew, from scratch, while one watches what it imagines of photos it never sees: minutes.
3. With `full`: the twin with a frozen random encoder, labelled probes, a finetuned predictor.

Every number is printed beside its control.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwm import config, recipe_book, verbs
from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_draw
from iwm.data.sources import open_images, open_pictures, source_identity
from iwm.evaluation import after_pretraining
from iwm.evaluation.world import changes, stages
from iwm.evaluation.world.changes import Changes
from iwm.reports import page, verdict
from iwm.run_folder import SHIPPED, RunFolder
from iwm.runtime.console import console
from iwm.runtime.fields import as_text
from iwm.training import estimate as pretraining
from iwm.training import loop
from iwm.verbs.demo import Demo

EMBEDDED = "sample"
"""The photos in the package: 800 to train on, 119 to measure on."""
LEAST = 200
"""Photos from which on a model is trained on the reader's own."""
STEPS = 1800
"""Training steps: about five minutes of one core."""
OBJECTS = "sample-objects"
"""The labelled source of `full`; its test images share no photo with training."""

FINETUNING: dict[str, Any] = {
    "lrs": (1e-3, 3e-3), "ratios": (1.0,), "views": 2, "epochs": 5, "search_epochs": 1, "baselines": False,
}  # fmt: skip
"""A short finetuning with the same grid for both predictors (ratio 0.1 never won in so few steps); `iwm finetune` alone
takes longer and gets further."""


@dataclass(frozen=True)
class Plan:
    """Where everything goes, and what is trained on."""

    out: Path
    source: str
    own: bool
    """Whether these are the reader's photos."""
    settings: config.Config

    @property
    def shipped(self) -> Path:
        """Where the results of the shipped model go."""
        return self.out / "shipped"


def demo(o: Demo) -> Path:
    """Show the shipped model, train a model anew and measure it; returns the report's path.

    An interrupted demo goes on where it stopped. Raises UserError for photos that cannot be read.
    """
    photos = open_pictures(o.photos) if o.photos != EMBEDDED else open_images(EMBEDDED, "all")
    plan = plan_of(o, photos)
    _imagine(o, plan)
    _train(o, plan, len(photos))
    if o.full:
        _measure_in_full(o, plan)
    report = page.write(plan.out)
    _say_what_it_says(plan)
    _say_what_next(o, plan, report)
    return report


def estimate(o: Demo) -> dict[str, Any]:
    """What the demo's training would do and cost. Raises UserError for photos that cannot be read."""
    photos = open_pictures(o.photos) if o.photos != EMBEDDED else open_images(EMBEDDED, "all")
    plan = plan_of(o, photos)
    training = pretraining.pretrain(plan.settings)
    note = f"training alone; {'half an hour' if o.full else 'a minute or two'} of measurements come on top"
    writes = [*training["writes"], f"{plan.out}/report.html", f"{plan.shipped}/"]
    return {"photos": len(photos), "trained_on": plan.source, **training, "measured": note, "writes": writes}


def plan_of(o: Demo, photos: ImageSet) -> Plan:
    """Where the demo writes, and the recipe `demo` with finer patches and so many epochs as give STEPS steps."""
    own = o.photos != EMBEDDED and len(photos) >= LEAST
    out = Path(o.out or "runs/demo" + "-own" * own + "-quick" * o.quick).expanduser()
    source = source_identity(o.photos) if own else EMBEDDED
    settings = recipe_book.get("demo")
    count = len(open_images(source, "train"))
    epochs = max(1, round(STEPS / max(1, count // settings.optim.batch_size)))
    steps = epochs * max(1, count // settings.optim.batch_size)
    if o.quick:
        epochs, steps = 1, max(1, count // settings.optim.batch_size)
    settings = replace(
        settings,
        data=replace(settings.data, source=source),
        encoder=replace(settings.encoder, patch_size=8),
        masks=replace(settings.masks, queries=0.375),
        optim=replace(settings.optim, epochs=epochs, warmup_epochs=epochs / 10),
        run=replace(settings.run, out=str(out), seed=o.seed, log_every=max(1, min(100, steps // 4)), save_every=300),
    )
    return Plan(out, source, own, settings)


# ---- the first minute ----------------------------------------------------------------------------------------------


def _imagine(o: Demo, plan: Plan) -> None:
    """The shipped model imagines changes of the photos."""
    console.rule("1: the model in the package imagines changes of photos, without training")
    whose = "embedded photos that it was not trained on" if o.photos == EMBEDDED else o.photos
    console.print(f"It sees photos ({whose}) and is told a change of each; what would they look like?")
    content = changes.imagine_changes(Changes(run=SHIPPED, photos=o.photos, out=str(plan.shipped), seed=o.seed))
    report = page.write(SHIPPED, results=str(plan.shipped))
    console.print(f"[bold]See {Path(content['path']).with_suffix('.png')}, and {report}", soft_wrap=True)
    console.print("Ctrl-C stops here; what follows takes minutes.")


# ---- the next minutes ----------------------------------------------------------------------------------------------


def _train(o: Demo, plan: Plan, photos: int) -> None:
    """A model is trained from scratch while held-out photos are watched, then it is measured beside its controls."""
    console.rule("2: a model is trained anew, from scratch, without labels")
    _say_what_on(o, plan, photos)
    s, run = plan.settings, as_text(plan.out)
    held, train = open_images(plan.source, "val"), open_images(plan.source, "train")
    shown, lessons = (
        load_draw(images, count, s.data.image_size, o.seed)[0]
        for images, count in ((held, changes.SHOWN), (train, stages.LESSONS))
    )
    loop.pretrain(s, callbacks=[stages.Stages(shown, lessons, o.seed)])
    console.print(f"[bold]See {plan.out / 'stages.png'}: imagined at the start, half-way, at the end.")
    console.rule("what the new model imagines")
    verbs.call("decoder", run, images=300, changes=2, test_images=20 if o.quick else 60, seed=o.seed)
    verbs.call("world", run, data=plan.source, images=2 if o.quick else 16, seed=o.seed)
    console.rule("what its encoder knows: the same photo found again, beside a random encoder and pixels")
    after_pretraining.print_instances(plan.out, s)


def _say_what_on(o: Demo, plan: Plan, photos: int) -> None:
    """What is trained on, and why not on what was given."""
    if o.photos != EMBEDDED and not plan.own:
        console.print(
            f"{o.photos} holds {photos:,} of the {LEAST} photos that training needs, so the embedded photos are taken.",
            markup=False,
        )
    whose = "your photos" if plan.own else "the embedded photos"
    passes = "one epoch, too short to learn much" if o.quick else f"{plan.settings.optim.epochs} epochs"
    console.print(
        f"It learns from {whose} ({passes}); a tenth or so is held out, and all numbers are of that part. At first it "
        "knows nothing: the truth comes anywhere among the versions of a photo.",
        markup=False,
    )


# ---- in full -------------------------------------------------------------------------------------------------------


def _measure_in_full(o: Demo, plan: Plan) -> None:
    """Twins, labelled probes, and the finetuned predictor against its random twin."""
    shared: dict[str, Any] = {"run": as_text(plan.out), "data": OBJECTS, "seed": o.seed}
    console.rule("3: how good is the world model, beside a twin whose encoder is random and frozen?")
    verbs.call("world", images=8 if o.quick else 64, frozen_random_twin=True, **shared)
    console.rule("what does the encoder know of labels?")
    verbs.call("probe", kind="linear", **shared)
    verbs.call("probe", kind="knn", **shared)
    console.rule("finetuning the predictor, pretrained and random")
    tuning = FINETUNING | ({"epochs": 1} if o.quick else {})
    for start in ("pretrained", "random"):
        verbs.call("finetune", train="predictor", predictor=start, **tuning, **shared)


def _say_what_it_says(plan: Plan) -> None:
    """Every finding of the report in words, beside its controls."""
    console.rule("what the numbers say")
    folder = RunFolder(plan.out)
    training = verdict.judge_training(folder.metric_lines(), folder.objective_kind())
    for finding in (training, *verdict.judge_results(folder.results())):
        mark = {True: "+", False: "-", None: "?"}[finding.good]
        console.print(f"{mark} {finding.title}: {finding.sentence}")


def _say_what_next(o: Demo, plan: Plan, report: Path) -> None:
    """The last lines: where to look, and what to do with one's own photos."""
    run = shlex.quote(as_text(plan.out))
    photos = shlex.quote(o.photos) if o.photos != EMBEDDED else "path/to/photos"
    console.rule("what next")
    lines = [
        f"Open {report}",
        f"Ask it something:          iwm imagine {run} photo.jpg --action hue=0.1,brightness=-0.2",
        f"Ask the shipped model:     iwm imagine {SHIPPED} photo.jpg --sweep hue",
    ]
    if not plan.own:
        lines.append(f"From {LEAST} photos of yours:  iwm demo {photos} --out runs/mine")
    lines += [
        f"For longer, on your own:   iwm pretrain eurosat --data.source {photos} --out runs/long",
        f"In Python:                 world = iwm.load({str(plan.out)!r})",
    ]
    if o.quick:
        lines.append(f"The same in earnest:       iwm demo {shlex.quote(o.photos)}")
    elif not o.full:
        lines.append(f"Twins, probes, finetuning: iwm demo {shlex.quote(o.photos)} --out {run} --full")
    for line in lines:
        console.print(line, soft_wrap=True)
