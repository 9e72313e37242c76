"""How good is the world model? Mean reciprocal rank among jittered versions of the same image (paper section 4.1).

For each image: a bank of B jittered targets; the clean image's tokens through the predictor with the action of bank
entry j, all positions queried; the rank of entry j by squared distance in target space over all tokens.
MRR = mean 1/rank; a predictor that ignores the action has H_B / B (0.0239 for B = 256). Ties count half.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from iwm import config, run_folder
from iwm.actions.action_space import ActionSpace, bank_ranges, in_reference_units, reference_space
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import open_splits, source_identity
from iwm.data.splits import draw_rows
from iwm.evaluation import ritual
from iwm.evaluation.uncertainty import standard_error
from iwm.evaluation.world import strips
from iwm.model.world_model import ImageWorldModel, Tokens
from iwm.runtime import devices, drawing
from iwm.runtime.algebra import chance, ranks, squared_distances
from iwm.runtime.console import console, progress, show
from iwm.runtime.errors import UserError
from iwm.training import loop

HITS = (1, 5, 10)


@dataclass(frozen=True)
class ImageRanks:
    """One image's bank: distances of every prediction (rows) to every entry (columns), and what the action changed."""

    distances: Float[Tensor, "b b"]
    null: Float[Tensor, " b"]
    actions: Float[Tensor, "b k"]
    moved: float
    moves: float


@torch.no_grad()
def rank_image(
    model: ImageWorldModel, image: UInt8[Tensor, "3 s s"], index: int, bank: int, seed: int, bank_space: ActionSpace
) -> ImageRanks:
    """Predict and rank one image's bank. Actions are encoded in the model's own ranges."""
    pixels = image[None].to(model.device).float() / 255
    parameters = bank_space.sample_bank(seed, index, bank)
    entries = bank_space.apply(pixels.expand(bank, -1, -1, -1), parameters)
    actions = model.space.difference(model.space.neutral(bank), parameters).to(model.device)
    clean = model.encode(pixels)
    truth, guess = [], []
    for entry, action in zip(entries.split(64), actions.split(64), strict=True):
        truth.append(model.target(entry).values.float())
        tokens = Tokens(clean.values.expand(len(entry), -1, -1), clean.grid)
        guess.append(model.predict(tokens, action).values.float())
    targets, predictions = torch.cat(truth), torch.cat(guess)
    still = model.predict(clean, model.space.null(1, model.device)[0]).values.float()
    return ImageRanks(
        squared_distances(predictions, targets),
        squared_distances(still, targets)[0],
        actions,
        float((predictions - still).square().sum()),
        float((targets - model.target(pixels).values.float()).square().sum()),
    )


@torch.no_grad()
def measure(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    bank: int = 256,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
    own_range: bool = False,
) -> dict[str, float]:
    """MRR, hits@k and all controls over the images' banks.

    mrr_shuffled: every prediction made with another entry's action; mrr_null: with the null action; both are at
    chance by construction of the metric unless targets tie. action_sensitivity = |p(a) - p(0)|^2 / |target(y_a) -
    target(y_0)|^2. inferred_action_error: mean absolute error, per component and in units of the reference's range, of
    the action of the bank entry nearest to the prediction. `advance` is called after every image. The bank's range is
    the `destructive` level's, common to all models, or the model's own.
    """
    bank_space = model.space if own_range else reference_space(model.space, model.settings.data.image_size)
    graded = [i for i, t in enumerate(model.space.transformations) if t.graded and t.both]
    units = in_reference_units(model.space, model.settings.data.image_size)[graded]
    all_ranks, shuffled, null, errors, zero = [], [], [], [], []
    moved = moves = 0.0
    for index, image in enumerate(images):
        result = rank_image(model, image, index, bank, seed, bank_space)
        all_ranks.append(ranks(result.distances))
        shuffled.append(1 / ranks(result.distances.roll(1, dims=0)))
        null.append(1 / ranks(result.null.expand(bank, bank)))
        nearest = result.actions[result.distances.argmin(1)]
        errors.append((nearest - result.actions)[:, graded].abs().mean(0))
        zero.append(result.actions[:, graded].abs().mean(0))
        moved, moves = moved + result.moved, moves + result.moves
        advance()
    rank = torch.cat(all_ranks)
    per_image = torch.stack([(1 / r).mean() for r in all_ranks])
    error, nothing = torch.stack(errors).mean(0).cpu() * units, torch.stack(zero).mean(0).cpu() * units
    return {
        "mrr": float((1 / rank).mean()),
        "mrr_standard_error": standard_error(per_image),
        "mrr_chance": chance(bank),
        "mrr_shuffled": float(torch.cat(shuffled).mean()),
        "mrr_null": float(torch.cat(null).mean()),
        **{f"hits_at_{k}": float((rank <= k).double().mean()) for k in HITS},
        "action_sensitivity": moved / max(moves, 1e-12),
        "inferred_action_error": float(error.mean()),
        "always_zero_action_error": float(nothing.mean()),
        **{f"inferred_{model.space.names[i]}_error": float(error[k]) for k, i in enumerate(graded)},
    }


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
    pixels, _ = load_all(Subset(held, draw_rows(images, len(held), seed)), size)
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
