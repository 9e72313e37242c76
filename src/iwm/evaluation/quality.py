"""The quality of a world model on held-out images: MRR with all its controls, and the retrieval strip.

MRR alone proves no representation: a twin with a *frozen random* encoder (same predictor, same budget) can be trained
and ranked beside it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iwm import config, run_folder, strips
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import open_splits, source_identity
from iwm.evaluation import ritual
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices, drawing
from iwm.runtime.console import console, progress, show
from iwm.runtime.errors import UserError
from iwm.training import loop
from iwm.world import bank_ranges, held_out, measure, reference_space

PUBLISHED = "Published (ImageNet, ViT-B/16, 300 epochs): none 0.00, sequence 0.82, feature 0.79."


def world(
    run: str,
    data: str,
    *,
    val: str = "",
    images: int = 64,
    bank: int = 256,
    seed: int = 0,
    frozen_random_twin: bool = False,
    out: str = "",
    speed: config.Speed | None = None,
) -> dict[str, Any]:
    """Measure RUN on held-out images of `data`; writes RUN/eval/world-DATA.json and .png, returns the result.

    Raises UserError for a source with too few images, or a RUN that is none.
    """
    if bank < 2 or images < 1:
        raise UserError(
            f"A bank of {bank} entries over {images} images ranks nothing; give --bank 2 or more, --images 1 or more."
        )
    if seed < 0:
        raise UserError(f"--seed {seed} is no seed; give 0 or more.")
    speed = speed or config.Speed()
    device = devices.device_of(speed)
    model = run_folder.open_world(run, speed)
    size = model.settings.data.image_size
    _, held, how = open_splits(data, val, size=size)
    pixels, _ = load_all(Subset(held, held_out(images, len(held), seed)), size)
    settings = {
        "data": source_identity(data),
        "val": source_identity(val) if val else "",
        "images": len(pixels),
        "bank": bank,
        "seed": seed,
        "run": ritual.run_identity(run, out),
        "frozen_random_twin": frozen_random_twin,
        "precision": devices.precision_of(speed, device),
    }
    measured: dict[str, Any] = _measured(model, pixels, bank, seed, speed, "world")
    if bank_ranges(reference_space(model.space, size)) != bank_ranges(model.space):
        own = _measured(model, pixels, bank, seed, speed, "own range", own_range=True)
        measured["mrr_own_range"] = own["mrr"]
    if frozen_random_twin:
        twin = _measured(_twin(run, speed), pixels, bank, seed, speed, "twin")
        measured["frozen_random_twin_mrr"] = twin["mrr"]
        measured["frozen_random_twin"] = twin
    measured["data"], measured["split"] = held.name, how
    measured["images"], measured["bank"] = len(pixels), bank
    variant = "" if (images, bank, seed) == (64, 256, 0) else f"{images}x{bank}-seed{seed}"
    path = ritual.place(run, "world", held.name, settings, variant=variant, out=out)
    with devices.threads(speed), devices.autocast(device, settings["precision"]):
        content = ritual.write(path, measured, settings)
        rows = strips.strip_rows(model, pixels[:6], seed, bank)
    drawing.save(strips.strips(rows), path.with_suffix(".png"))
    shown = {k: v for k, v in measured.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    show(f"World model on {held.name} ({how})", shown, path)
    console.print(PUBLISHED)
    if measured["mrr"] < measured["mrr_chance"]:
        console.print("[red]MRR is below chance: targets tie, so the target space has collapsed.")
    return content


def _measured(
    model: ImageWorldModel,
    pixels: torch.Tensor,
    bank: int,
    seed: int,
    speed: config.Speed,
    name: str,
    own_range: bool = False,
) -> dict[str, float]:
    device = model.device
    precision = devices.precision_of(speed, device)
    with devices.threads(speed), devices.autocast(device, precision), progress("images") as bar:
        task = bar.add_task(name, total=len(pixels), note="")
        return measure(model, pixels, bank, seed, lambda: bar.advance(task), own_range=own_range)


def _twin(run: str, speed: config.Speed) -> ImageWorldModel:
    """RUN's twin with a frozen random encoder, trained like it (once; kept in RUN/eval/frozen-random-twin)."""
    return run_folder.open_world(str(_train_twin(run, speed)), speed)


def _train_twin(run: str, speed: config.Speed) -> Path:
    """Train the twin where it is not yet there; a run that went on from another one's weights has a twin that goes on
    from that one's twin."""
    folder = run_folder.run_folder(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"A twin repeats the training of a run folder, and {run} has no config.yaml; give the --out folder."
        )
    settings = config.load(folder / "config.yaml")
    # Weights from elsewhere are an encoder that is not random: the twin begins without them.
    before = Path(settings.init).expanduser() if settings.init else None
    begun = before is not None and (before / "config.yaml").is_file()
    init = str(_train_twin(settings.init, speed)) if begun else ""
    out = folder / "eval" / "frozen-random-twin"
    console.print(f"Training the twin with a frozen random encoder in {out}")
    settings = replace(
        settings,
        init=init,
        optim=replace(settings.optim, freeze_encoder=True),
        speed=replace(settings.speed, device=speed.device, workers=speed.workers, threads=speed.threads),
        run=replace(settings.run, out=str(out), resume=True),
    )
    return loop.pretrain(settings)
