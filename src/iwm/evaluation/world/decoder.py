"""How true are imagined pictures? The pixel decoder is fitted to targets, then measured on held-out images.

    PSNR = mean over images of -10 log10(mean over pixels and colours of (picture - y)^2),  y the image x changed by a

    truth        the decoded target(y): the decoder's own error
    prediction   the decoded p(f(x), a)
    null         the decoded p(f(x), 0): told no change
    unchanged    the image x itself
    bank_mean    the mean picture of a bank of changed versions of x: the best guess of who is not told the action

The null action has the decoder's blur too, so prediction minus null is what the action brings.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.actions.reference import reference_space
from iwm.data.shares import load_draw
from iwm.data.sources import open_splits
from iwm.data.splits import tenth_of_rows
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.uncertainty import standard_error
from iwm.evaluation.world import strips
from iwm.model import pixel_decoder
from iwm.model.objectives.pixels import patches_of
from iwm.model.pixel_decoder import Batch
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import decoder_file, identity, open_world
from iwm.runtime import files, sharing
from iwm.runtime.algebra import psnr
from iwm.runtime.console import console, progress, table
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.verbs.decoder import Decoder

BATCH = 64
WORDS = {
    "truth": "truth, decoded (the decoder's limit)",
    "prediction": "prediction, decoded (imagined)",
    "null": "prediction of no change, decoded",
    "unchanged": "source left as it is",
    "bank_mean": "mean of the bank",
}
"""What is compared with the really changed image."""


def decoder(o: Decoder) -> dict[str, Any]:
    """Fit the pixel decoder of RUN and save it beside the weights; writes RUN/eval/decoder-DATA.json and .png, prints
    and returns what was written. Raises UserError for a RUN without predictor, or one that cannot be written to."""
    with ritual.evaluation("decoder", o) as work:
        model = open_world(o.run, work.session)
        place = decoder_file(o.run)
        sharing.by_first(lambda: files.require_writable(place.parent, "The decoder", "copy the run elsewhere."))
        size, source = model.settings.data.image_size, o.data or model.settings.data.source
        if not source:
            raise UserError(f"{o.run} does not say what it was trained on; give --data, a source of images.")
        train, held, how = open_splits(source, o.val, size=size)
        lessons, _ = load_draw(train, o.images, size, o.seed)
        exam, _ = load_draw(held, o.test_images, size, o.seed)
        with work.session.autocast():
            payload = _fit(model, lessons, o, place)
            payload |= measure(model, exam, o.bank, o.seed)
        payload |= {"data": held.name, "split": how, "images": len(lessons), "test_images": len(exam)}
        outcome = Outcome(
            data=held.name,
            payload=payload,
            settings=work.chosen(o, "images", "changes", "head", "test_images", "bank", "seed", data=source, val=o.val),
            variant=(o.head if o.head != "auto" else "", f"seed{o.seed}" if o.seed else ""),
            figures={"": lambda: _strips(model, exam[:6], o, work.session)},
        )
        return work.conclude(outcome, _show)


def _strips(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], o: Decoder, session: Session) -> Figure:
    with session.autocast():
        return strips.strips(strips.strip_rows(model, images, o.seed, o.bank))


# ---- fitting -------------------------------------------------------------------------------------------------------


def _fit(model: ImageWorldModel, lessons: UInt8[Tensor, "n 3 s s"], o: Decoder, place: Path) -> dict[str, Any]:
    """Fit and save the model's decoder, unless its tokens are pixels already; returns how it was done."""
    model.decoder = None
    if model.decodes:
        return {"head": "exact"}
    if len(lessons) < 2:
        raise UserError("A decoder is fitted to nine tenths of the images and chosen by the others; give 2 or more.")
    with progress("images") as bar:
        task = bar.add_task("fit the decoder", total=len(lessons), note="")
        parts = batches(model, lessons, o.changes, o.seed, lambda count: bar.advance(task, count))
        model.decoder, errors = pixel_decoder.fit(parts, o.head, o.seed)
    fitted = model.decoder
    sharing.by_first(lambda: fitted.write(place, identity(o.run)))
    decibels = {f"tenth_psnr_{head}": -10 * float(torch.tensor(error).log10()) for head, error in errors.items()}
    return {"head": model.decoder.head, "decoder": str(place), **decibels}


@torch.no_grad()
def batches(
    model: ImageWorldModel,
    images: UInt8[Tensor, "n 3 s s"],
    changes: int,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Batch]:
    """Targets and pixels of changed versions of the images, a seeded tenth of them held. `advance` is called with how
    many images are done. Every rank encodes its share of each batch, and all get the batches of one process."""
    space, size = reference_space(model.space, model.settings.data.image_size), model.encoder.patch_size
    rest, tenth = tenth_of_rows(len(images), seed)
    for rows, held in ((rest, False), (tenth, True)):
        for part in rows.split(BATCH):
            pixels = images[part].to(model.device).float() / 255
            for change in range(changes):
                draws = space.sample(seed, change, part.numpy(), "target", always=True)
                changed = space.apply(pixels, draws)
                targets = sharing.by_rows(lambda mine: model.target(mine).values.float(), changed)
                yield Batch(targets, patches_of(changed, size), held)
            advance(len(part))


# ---- measuring -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"], bank: int, seed: int) -> dict[str, float]:
    """PSNR of all of WORDS in dB, averaged over the images, with standard errors; every rank does its share of them.

    The truth is the first entry of each image's bank.
    """
    space, reference = model.space, reference_space(model.space, model.settings.data.image_size)

    def of_images(indices: Int64[Tensor, " n"]) -> dict[str, Tensor]:
        values: dict[str, list[Tensor]] = {name: [] for name in WORDS}
        for index in indices.tolist():
            clean = images[index][None].to(model.device).float() / 255
            parameters = reference.sample_bank(seed, index, bank)
            entries = reference.apply(clean.expand(bank, -1, -1, -1), parameters)
            action, truth = space.difference(space.neutral(1), parameters[:1]), entries[:1]
            tokens = model.encode(clean)
            pictures = {
                "truth": model.decode(model.target(truth)),
                "prediction": model.decode(model.predict(tokens, action)),
                "null": model.decode(model.predict(tokens, space.null(1))),
                "unchanged": clean,
                "bank_mean": entries.mean(0, keepdim=True),
            }
            for name, picture in pictures.items():
                values[name].append(psnr(picture, truth).cpu())
        return {name: torch.cat(parts) for name, parts in values.items()}

    numbers: dict[str, float] = {}
    for name, per_image in sharing.each_by_rows(of_images, torch.arange(len(images))).items():
        numbers[f"psnr_{name}"] = float(per_image.mean())
        numbers[f"psnr_{name}_standard_error"] = standard_error(per_image)
    return numbers


def _show(numbers: Mapping[str, Any]) -> None:
    rows = [
        [words, f"{numbers[f'psnr_{name}']:.2f}", f"{numbers[f'psnr_{name}_standard_error']:.2f}"]
        for name, words in WORDS.items()
    ]
    console.print(table(f"PSNR on {numbers['data']} (head: {numbers['head']})", ["picture", "dB", "error"], rows))
