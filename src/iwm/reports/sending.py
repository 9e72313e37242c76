"""`iwm report`: write the page of a run, and send it with pictures and results to trackers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from iwm.reports import page
from iwm.reports.finding import join, numbers
from iwm.reports.results import Result, read
from iwm.reports.verdict import judge_training
from iwm.run_folder import RunFolder
from iwm.runtime import files
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.training.reporting import Sender, begin, end
from iwm.training.trackers import Tracker, trackers_of
from iwm.verbs.report import Report


def report(o: Report) -> Path:
    """Write the page of a run and say where it lies; with `report_to` send it, too.

    Raises UserError when there is no such run, and for a tracker that is unknown or cannot be reached, before the page
    is written; Busy while another process trains the run or sends it, which may tell the trackers the same.
    """
    kinds = trackers_of(o.report_to)
    if not kinds:
        return write_page(o)
    run = RunFolder.of(o.run)
    with files.lock(run.training_lock, f"{run.path} is being trained, or sent to trackers,"):
        senders = open_senders(run, kinds)
        try:
            path = write_page(o)
        except BaseException:
            for sender in senders:
                sender.close()
            raise
        send(run, senders, path)
    return path


def write_page(o: Report) -> Path:
    """Write the page of a run and say where it lies."""
    path = page.write(o.run, o.out)
    console.print(f"Written to {path}", soft_wrap=True)
    return path


def open_senders(run: RunFolder, kinds: list[type[Tracker]]) -> list[Sender]:
    """The trackers, begun. Raises UserError for what is no run that was trained here, and when one cannot begin; the
    others are closed then."""
    run.require("config")
    run.require("metrics")
    senders = [Sender(kind, run, run.settings()) for kind in kinds]
    begin(senders)
    return senders


def send(run: RunFolder, senders: list[Sender], path: Path) -> None:
    """Send what the trackers do not have yet: lines of metrics, pictures, the main numbers of results, and the page.
    They stand at the newest step, so results of earlier weights are left out, which is said.

    Raises UserError when something could not be sent.
    """
    lines = run.metric_lines()
    step = lines[-1]["step"] if lines else 0
    words = judge_training(lines, run.objective_kind()).sentence
    present, earlier = run.results_of_weights()
    results = [read(run.eval / f"{result['file']}.json") for result in present]
    if earlier:
        left_out = f"Not sent, for the run holds other weights now: {join(earlier)}; measure again."
        console.print(f"[yellow]{left_out}", soft_wrap=True)
    for sender in senders:
        sender.start()
        for name, picture in _pictures(run, results):
            sender.file(name, picture, lambda tracker, n=name, p=picture: tracker.picture(n, p, step))
        for result in results:
            name, numbers = result.path.stem, _numbers(result)
            sender.file(f"{name}.json", result.path, lambda tracker, n=numbers: tracker.scalars(step, n))
        sender.file("report", path, lambda tracker: tracker.page(path, words, step))
    if sentences := end(senders):
        raise UserError(" ".join(sentences))
    console.print(f"Sent to {', '.join(sender.name for sender in senders)}.")


def _pictures(run: RunFolder, results: list[Result]) -> Iterator[tuple[str, Path]]:
    """Pictures by name: what it imagined while it was trained, and those beside its results."""
    if run.stages.is_file():
        yield "stages", run.stages
    for result in results:
        for ending, path in result.pictures.items():
            yield f"{result.path.stem}{'-' if ending else ''}{ending}", path


def _numbers(result: Result) -> dict[str, float]:
    """The main numbers of a result."""
    own = {one.name for one in dataclasses.fields(result)} - {"path", "content", "live"}
    values = numbers(result, {name: f"{result.path.stem}/{name}" for name in own})
    return {name: float(value) for name, value in values.items()}
