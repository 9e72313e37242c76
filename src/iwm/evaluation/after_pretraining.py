"""Pretraining as a verb: training, then, where the source has too few labels, one number that needs none, and the
report for trackers.

A source with labels of 100 images or more has its online probe in every line of the metrics; of any other the instance
probe (`iwm.evaluation.tasks.instance`) says at the end what the encoder knows.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwm import config, verbs
from iwm.data.image_sets import ImageSet
from iwm.data.sources import open_images
from iwm.evaluation.tasks import probes
from iwm.runtime import distributed, launch
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.runtime.fields import as_text
from iwm.training import loop
from iwm.training.online_probe import has_probe
from iwm.verbs.probe import Probe


def pretrain(settings: config.Config, source: ImageSet | None = None, callbacks: Sequence[Any] = ()) -> Path:
    """Train a world model, see `iwm.training.loop.pretrain`; without labels enough for the online probe, probe it by
    instances. Returns the run folder. Images of your own, given as `source`, have no part that is held out, so nothing
    is measured on them.

    Raises UserError for bad settings, Interrupted after Ctrl-C (saved).
    """
    with distributed.together(loop.GO_ON):  # until the end of it all, so that what is wrong on one rank ends all
        run = loop.pretrain(settings, source, callbacks)
        if source is None and not has_probe(open_images(settings.data.source, "train", size=settings.data.image_size)):
            print_instances(run, settings)
    where = launch.place()
    if where.rank == 0:
        console.print(f"Written to {run}; on one page: iwm report {shlex.quote(str(run))}", soft_wrap=True)
    if settings.run.report_to and where.size == 1:
        send_report(run, settings)
    elif settings.run.report_to and where.rank == 0:
        words = shlex.join(["iwm", "report", as_text(run), "--report-to", settings.run.report_to])
        console.print(f"The report, one process sends: {words}", soft_wrap=True)
    return run


def send_report(run: Path, settings: config.Config) -> None:
    """Write the page of a run and send it to the trackers of its settings. Where that cannot be done it is said."""
    try:
        verbs.call("report", run=as_text(run), report_to=settings.run.report_to)
    except UserError as error:
        console.print(f"[yellow]The report was not sent. {error}", soft_wrap=True)


def print_instances(run: Path, settings: config.Config) -> None:
    """The instance probe of a run on its own source, and what it says as the last line. Where it cannot be measured
    the line says why. Raises UserError where one of several ranks fails alone, for the others wait for it."""
    how = Probe(
        run=as_text(run), data=settings.data.source, kind="instance", seed=settings.run.seed, speed=settings.speed
    )
    with Session.open(settings.speed):  # which ranks leave together, measured or not
        try:
            numbers = probes.probe(how)
        except UserError as error:
            if not distributed.all_complain(str(error)):
                raise
            console.print(f"What the encoder knows was not measured. {error}")
            return
        _print(numbers)


def _print(numbers: Mapping[str, Any]) -> None:
    console.print(
        f"Without labels: of {numbers['n_val']:,} held-out images {numbers['top1']:.1%} are found again by a changed "
        f"crop (random encoder {numbers['random_encoder_top1']:.1%}, raw pixels {numbers['raw_pixels_top1']:.1%}, "
        f"chance {numbers['chance']:.1%})."
    )
