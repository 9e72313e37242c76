"""What a sweep would do and cost, said before it begins; nothing is written (`iwm sweep ... --dry-run`)."""

from dataclasses import replace
from typing import Any

from iwm.config import Config
from iwm.runtime import pace
from iwm.runtime.console import console, warnings_once
from iwm.sweeps.axes import Cell
from iwm.sweeps.study import Study, is_trained
from iwm.sweeps.sweep import require_sense
from iwm.training import estimate
from iwm.verbs.sweep import Sweep


def sweep(o: Sweep) -> dict[str, Any]:
    """The cells that are left, with the steps and the time of their pretraining. Raises UserError as the sweep does."""
    study = Study(o)
    require_sense(study)
    study.require_same()
    study = study.prepare(dry_run=True)
    with warnings_once():
        return _plan(study, o)


def _plan(study: Study, o: Sweep) -> dict[str, Any]:
    """The sum of the cells' plans."""
    cells = [cell for cell in study.cells if o.cell in ("", cell.name) and not study.is_finished(cell)]
    rows, views = [], []
    for cell in cells:
        settings, images = _pretraining(study, cell)
        if is_trained(study.run_of(cell), settings):
            console.print(f"{cell.name}: trained already")
            continue
        rows.append(estimate.pretrain(settings, images))
        views.append(repr((cell.settings.data, cell.settings.actions, cell.settings.encoder)))
        console.print(f"{cell.name}: {rows[-1]['steps_left']:,} steps, {rows[-1]['time']}")
    tokens = {view: row.get("tokens_gb", 0) for view, row in zip(views, rows, strict=True)}  # cells share them
    seconds = [row["seconds"] for row in rows]
    known = None if None in seconds else sum(seconds)
    return {
        "cells": [cell.name for cell in cells],
        "images": rows[0]["images"] if rows else 0,
        "steps": sum(row["steps_left"] for row in rows),
        "seconds": known,
        "time": "not known" if known is None else f"{pace.in_words(known)}, one after the other",
        "disk_gb": round(sum(row["disk_gb"] - row.get("tokens_gb", 0) for row in rows) + sum(tokens.values()), 3),
        "evaluations": list(study.evaluations(cells[0])) if cells else [],
        "measured": "pretraining alone; what the evaluations take comes on top",
        "writes": [f"{study.folder}/{name}" for name in ("runs", "sweep.json", "sweep.html")],
    }


def _pretraining(study: Study, cell: Cell) -> tuple[Config, int]:
    """The settings that a cell is pretrained with, and how many of their source's images: 0, all, where the sweep takes
    all or has chosen them before."""
    run = replace(cell.settings.run, out=str(study.run_of(cell).path))
    chosen = study.source != study.base.data.source
    return replace(cell.settings, run=run), 0 if chosen else study.options.images
