"""hub: a folder ready to push: the weights as `iwm.load` reads them, and a model card with what was measured."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from iwm.data.samples import ATTRIBUTION
from iwm.data.shares import load_draw
from iwm.evaluation.world import changes, strips
from iwm.exporting.format import ExportFormat, Request
from iwm.exporting.own_layout import write_weights
from iwm.model import card
from iwm.model.card import Card, Measured
from iwm.model.weights import DECODER
from iwm.model.world_model import ImageWorldModel
from iwm.reports import verdict
from iwm.reports.finding import join
from iwm.run_folder import RunFolder
from iwm.runtime import drawing, files
from iwm.runtime.console import console
from iwm.runtime.errors import UserError

STRIP, README = "imagined.png", "README.md"
BANK = 32
"""Versions of a photo on the strip that are ranked."""
OPTIONAL = (DECODER, STRIP, ATTRIBUTION.name)
"""Files that not every model has."""
OWN_CARD = "card.md"
"""A card beside the weights, as the model in the package has one."""
LICENCES = {"demo": "apache-2.0"}
"""Of weights that come with the package."""


class HubFolder(ExportFormat):
    """Weights, decoder, model card, strip."""

    name = "hub"
    takes = ("small", "license", "photos")

    def write(self, request: Request, folder: Path) -> dict[str, Any]:
        write_folder(request, folder, Card())
        return {}

    def usage(self, out: Path, result: dict[str, Any]) -> list[str]:
        return [f"Look at {out / README}; then: iwm push RUN user/name, or: hf upload user/name {out}"]


def write_folder(request: Request, folder: Path, about: Card) -> None:
    """Write everything that a repository of a RUN holds; `about` says where it and its encoder will lie.

    Raises UserError where RUN is a finetuned model's weights.
    """
    model, o = request.model, request.options
    write_weights(request, folder)
    strip = write_strip(model, folder, o.photos)
    own = request.place / OWN_CARD
    filled = Card(
        repository=about.repository,
        encoder_repository=about.encoder_repository,
        licence=licence_of(request.run, o.license),
        results=measured(request.run),
        strip=strip,
        own_text=own.read_text().strip().replace("# ", "### ", 1) if own.is_file() else "",
    )
    files.write_text(folder / README, card.text_of(model, filled))


def licence_of(run: str, given: str) -> str:
    """The licence of a RUN's weights: the one that is `given`, or that of the package's own; "" where it is unknown."""
    return given or LICENCES.get(run, "")


def measured(run: str) -> list[Measured]:
    """What was measured on a RUN's present weights, every result beside its controls. What was measured on earlier
    ones is left out, and named on the console."""
    folder = RunFolder.of(run)
    if not folder.eval.is_dir():
        return []
    results, (present, earlier) = [], folder.results_of_weights()
    if earlier:
        words = f"The card leaves out {join(earlier)}: measured on other weights than the run now holds; measure again."
        console.print(f"[yellow]{words}", soft_wrap=True)
    for finding in verdict.judge_results(present):
        ours, *controls = [f"{name} {value:.3f}" for name, value in finding.bars] or ["-"]
        results.append(Measured(finding.title, ours.split()[-1], ", ".join(controls) or "none", finding.sentence))
    return results


@torch.no_grad()
def write_strip(model: ImageWorldModel, folder: Path, count: int) -> str:
    """Write a picture of imagined changes of so many photos of the package, and who took them; returns its name, empty
    where there is nothing to show (which is said)."""
    if not count or not model.objective.predicts:
        return ""
    if not model.decodes:
        console.print("The strip shows no imagined pictures: no pixel decoder was fitted (iwm decoder RUN).")
    try:
        figure = imagined(model, count)
    except UserError as reason:
        console.print(f"The card has no strip of pictures: {reason}")
        return ""
    drawing.save(figure, folder / STRIP)
    (folder / ATTRIBUTION.name).write_bytes(ATTRIBUTION.read_bytes())
    return STRIP


def imagined(model: ImageWorldModel, count: int) -> Figure:
    """Changes of photos that are held out of the package's own training. Raises UserError where the model's actions
    have no graded change."""
    size = model.settings.data.image_size
    photos = changes.held_out("sample", size)
    images, rows = load_draw(photos, count, size, 0)
    names = [Path(photos.path(int(row))).name for row in rows]
    return strips.strips([question.told for question in changes.ask_changes(model, images, names, BANK, 0)])
