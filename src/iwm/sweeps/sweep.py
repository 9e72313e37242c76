"""Conditioning x difficulty x capacity: which pretraining gives which kind of representation (paper section 4).

A cell is a recipe with overrides: one pretraining in a run folder of its own, DIR/CELL, measured by one protocol (MRR
on the bank common to all, linear probe, attentive probe, predictor finetuning). What is finished is never done again,
so a sweep may be stopped, go on elsewhere (`--list`, `--cell`), or grow. DIR/sweep.json is written after every cell.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.markup import escape

from iwm import config, run_folder
from iwm.config import Config
from iwm.data.sources import labelled_splits, open_splits, source_identity
from iwm.evaluation import ritual
from iwm.reports.verdict import judge_training, number
from iwm.run_folder import read_metrics
from iwm.runtime import devices, files
from iwm.runtime.console import console, progress
from iwm.runtime.errors import Interrupted, UserError
from iwm.runtime.files import plain
from iwm.sweeps import guidance, measurement, page, subset
from iwm.sweeps.axes import Cell, cells_of
from iwm.sweeps.protocol import Axes, Protocol
from iwm.training import loop

VARIED = ("predictor.conditioning", "predictor.depth", "predictor.width", "actions.level")
"""The settings that make the cells of one recipe."""
POLL_SECONDS = 0.5

# ---- the sweep -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep in one folder, with where each of them stands."""

    folder: Path
    base: Config
    axes: Axes
    protocol: Protocol
    others: tuple[Config, ...] = ()
    """Recipes that are one cell each, as they are."""
    source: str = ""
    """What is trained on, once `prepared`; paths as they were typed."""
    data: str = ""
    """What is measured on."""
    val: str = ""

    @cached_property
    def cells(self) -> list[Cell]:
        base, *others = (
            replace(settings, data=replace(settings.data, source=self.source or settings.data.source))
            for settings in (self.base, *self.others)
        )
        return cells_of(base, self.axes, others)

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on. Sources stand there as they were typed: DIR/sweep.json is for others to read; the
        place they stand for is a mark."""
        source = self.base.data.source
        own = {"images": self.protocol.images, "data.source": source}
        return plain(
            {
                "recipe": self.base.recipe,
                "recipes": [other.recipe for other in self.others],
                "pretraining": {k: v for k, v in learned(self.base).items() if k not in VARIED} | own,
                "source_mark": ritual.fingerprint({"source": source_identity(source)}),
                "axes": vars(self.axes),
                "protocol": vars(self.protocol),
                "seed": self.base.run.seed,
            }
        )

    def require_same(self) -> None:
        """Raises UserError when the folder holds a sweep of another recipe or pretraining, or no sweep at all."""
        path = self.folder / "sweep.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; give a folder as --out.")
        if not path.exists() and (self.folder / "config.yaml").exists():
            raise UserError(f"{self.folder} holds a run and no sweep; give another --out.")
        if not path.exists():
            return
        there = run_folder.read_result(path).get("settings")
        if not isinstance(there, dict) or not isinstance(there.get("pretraining"), dict):
            raise UserError(f"{path} is damaged; delete it, the cells beside it are kept and collected anew.")
        if there.get("recipe") != self.base.recipe:
            raise UserError(
                f"{self.folder} holds a sweep of recipe {there.get('recipe')}, not {self.base.recipe}; give another "
                "--out."
            )
        before, now = there["pretraining"], self.settings["pretraining"]
        for name in now | before:
            was, is_ = before.get(name), now.get(name)
            if name == "data.source":
                # Folders of older versions hold no mark, but the place itself.
                mark = there.get("source_mark") or ritual.fingerprint({"source": source_identity(str(was))})
                if mark == self.settings["source_mark"]:
                    continue
                if was == is_:
                    raise UserError(
                        f"{self.folder} holds a sweep of {was!r} at another place, seen from another folder or moved "
                        "since; put the images back, or give another --out."
                    )
            if was != is_:
                raise UserError(
                    f"{self.folder} holds a sweep with {name} = {was!r}, now it is {is_!r}; give another --out, or the "
                    "old setting to go on."
                )

    def prepared(self) -> "Sweep":
        """The same on the images that were asked for. Raises UserError when they, or a setting, will not do."""
        protocol, folder = self.protocol, self.folder / "images"
        size, seed = self.base.data.image_size, self.base.run.seed
        source, val = self.base.data.source, protocol.val
        data = protocol.eval_data or source
        for cell in self.cells:
            config.validate(cell.settings)
        if protocol.needs_labels:
            labelled_splits(data, val, size=size)
        if any(protocol.eval_images):
            train_set, test_set, _ = open_splits(data, val, size=size)
            data, val = subset.write(train_set, test_set, protocol.eval_images, size, seed, folder), ""
        if protocol.images:
            train_set, test_set, _ = open_splits(source, size=size)
            source = subset.write(train_set, test_set, (protocol.images, 1000), size, seed, folder)
        return replace(self, source=source, data=data, val=val)

    def place(self, cell: Cell) -> Path:
        return self.folder / cell.name

    def asked(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """The evaluations of a cell; the first one has the controls for all."""
        asked = self.protocol.evaluations(controls=cell == self.cells[0])
        return {name: how for name, how in asked.items() if cell.predicts or name not in measurement.NEEDS_PREDICTOR}

    def mark(self, cell: Cell, name: str) -> str:
        """Fingerprint of all that one evaluation's number depends on."""
        where = {"data": source_identity(self.data), "val": source_identity(self.val) if self.val else ""}
        return ritual.fingerprint({"pretraining": learned(cell.settings), name: self.asked(cell)[name], **where})

    def record(self, cell: Cell) -> dict[str, Any]:
        """DIR/CELL/cell.json: by evaluation, what was asked and which result answers it."""
        return run_folder.read_result(self.place(cell) / "cell.json")

    def found(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """The cell's results to exactly what is asked now, by evaluation."""
        folder, record = self.place(cell), self.record(cell)
        if not record:
            return {}
        there = {result["fingerprint"]: result for result in run_folder.read_results(folder)}
        answers = {name: record.get(name) for name in self.asked(cell)}
        return {
            name: there[answer["result"]]
            for name, answer in answers.items()
            if isinstance(answer, dict)
            and answer.get("asked") == self.mark(cell, name)
            and answer.get("result") in there
        }

    def run(self, cell: Cell) -> bool:
        """Train a cell and measure what has not been measured; returns whether there was anything to do.

        An evaluation that cannot be done is left out with the sentence why; so is a cell that diverges.
        """
        folder = self.place(cell)
        if len(self.found(cell)) == len(self.asked(cell)):
            return False
        console.rule(f"{cell.name} ({self.cells.index(cell) + 1} of {len(self.cells)})")
        settings = replace(cell.settings, run=replace(cell.settings.run, out=str(folder), resume=True))
        record: dict[str, Any] = {name: self.record(cell).get(name) for name in self.asked(cell)}
        try:
            if not is_trained(folder, cell.settings):
                loop.pretrain(settings)
        except UserError as error:
            self._note(folder, record | {"failed": str(error)})
            console.print(f"[yellow]{cell.name} failed: {escape(str(error))}")
            return True
        for name, asked in self.asked(cell).items():
            if name in self.found(cell):
                continue
            answer: dict[str, Any] = {"asked": self.mark(cell, name)}
            try:
                result = measurement.measure(name, str(folder), self.data, self.val, settings, asked)
                answer["result"] = result["fingerprint"]
            except UserError as error:
                answer["refused"] = str(error)
                console.print(f"[yellow]{cell.name}, {name} is left out: {escape(str(error))}")
            record[name] = answer
            self._note(folder, record)
        return True

    def _note(self, folder: Path, record: dict[str, Any]) -> None:
        files.write_text(folder / "cell.json", json.dumps(record, indent=1) + "\n")

    def row(self, cell: Cell) -> dict[str, Any]:
        """What DIR/sweep.json says of a cell; None for what has not been measured."""
        found, record = self.found(cell), self.record(cell)
        world, linear = found.get("world", {}), found.get("linear", {})
        tops = {name: number(found.get(name, {}), "top1") for name in guidance.ACCURACIES}
        mrr = number(world, "mrr")
        own = number(world, "mrr_own_range")
        healthy, health = _health(self.place(cell))
        asked = self.asked(cell)
        answers = {name: record[name] for name in asked if isinstance(record.get(name), dict)}
        refused = {name: answer["refused"] for name, answer in answers.items() if "refused" in answer}
        state = "failed" if "failed" in record else "finished" if len(found) == len(asked) else "partial"
        return {
            "cell": cell.name,
            "state": state if record or (self.place(cell) / "config.yaml").exists() else "waiting",
            "recipe": cell.settings.recipe,
            "conditioning": cell.conditioning,
            "difficulty": cell.difficulty,
            "predictor": cell.predictor,
            "mrr": mrr,
            **tops,
            "mrr_standard_error": number(world, "mrr_standard_error"),
            "mrr_chance": number(world, "mrr_chance"),
            "mrr_own_range": mrr if own is None else own,
            "n_val": next((result["n_val"] for result in found.values() if "n_val" in result), None),
            "random_encoder_top1": number(linear, "random_encoder_top1"),
            "raw_pixels_top1": number(linear, "raw_pixels_top1"),
            "chance_top1": number(linear, "chance"),
            "healthy": healthy,
            "health": health,
            "failed": record.get("failed"),
            "refused": refused,
        }

    def collect(self) -> dict[str, Any]:
        """Write DIR/sweep.json, the pictures and DIR/sweep.html from what the cells hold; returns the content."""
        runs = [self.row(cell) for cell in self.cells]
        content = {
            "runs": runs,
            "correlations": guidance.correlations(runs),
            "tables": guidance.tables(runs),
            "guidance": [vars(finding) for finding in guidance.advise(runs)],
        }
        with devices.threads(self.base.speed):
            content = ritual.write(self.folder / "sweep.json", content, self.settings)
        page.write(self.folder, content)
        return content


def learned(settings: Config) -> dict[str, Any]:
    """The settings that decide what is learned, flat; the source as anybody finds it again."""
    settings = replace(settings, data=replace(settings.data, source=source_identity(settings.data.source)))
    flat = config.flatten(config.to_dict(settings))
    return {k: v for k, v in flat.items() if k == "run.seed" or k.split(".")[0] not in ("speed", "run", "recipe")}


def is_trained(folder: Path, settings: Config) -> bool:
    """Whether the folder's exported weights are those of a finished training with these settings."""
    made = run_folder.read_result(folder / "model" / "config.json").get("settings")
    if not isinstance(made, dict) or not (folder / "model" / "model.safetensors").is_file():
        return False
    return learned(config.from_dict(Config, made)) == learned(settings)


def _health(folder: Path) -> tuple[bool | None, str | None]:
    """The doctor's verdict on a cell's training."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return None, None
    finding = judge_training(read_metrics(metrics))
    return finding.good, finding.sentence


# ---- the command ---------------------------------------------------------------------------------------------------


def sweep(
    base: Config,
    axes: Axes,
    protocol: Protocol,
    *,
    others: Sequence[Config] = (),
    cell: str = "",
    listed: bool = False,
    jobs: int = 1,
    argv: Sequence[str] = (),
) -> dict[str, Any]:
    """Run all cells (or the one named `cell`) into base.run.out and return what DIR/sweep.json holds.

    `listed` prints a command for every cell instead; `jobs` runs that many at once, each as a process of its own. Both
    repeat `argv`, the command's words after `iwm sweep`. Raises UserError for bad input and when a cell failed,
    Interrupted when stopped.
    """
    if not base.run.out:
        raise UserError("Where should the sweep go? Give --out DIR.")
    if jobs < 1:
        raise UserError(f"--jobs {jobs} runs nothing; give 1 or more.")
    out = Path(base.run.out).expanduser()
    whole = Sweep(out, base, axes, protocol, tuple(others))
    if protocol.finetune_epochs:
        # Its rates are checked now, not after hours of pretraining.
        measurement.finetune_settings(protocol.evaluations(controls=False)["predictor_finetuning"])
    names = [one.name for one in whole.cells]
    if cell and cell not in names:
        raise UserError(f"This sweep has no cell '{cell}'; {config.did_you_mean(cell, names)}")
    if listed:
        for name in names:
            print(_command(argv, name))
        return {}
    whole.require_same()
    ready = whole.prepared()
    if not cell:
        ready.collect()  # what is there already, before hours pass
    mine = [one for one in ready.cells if cell in ("", one.name)]
    try:
        if jobs > 1 and not cell:
            _run_apart(ready, mine, jobs, argv)
        else:
            _run_here(ready, mine)
    except Interrupted:
        ready.collect()  # the cells that have got farther since
        raise
    content = ready.collect()
    page.show(content, out)
    broken = [row for row in content["runs"] if row["failed"] and cell in ("", row["cell"])]
    if broken:
        told = f"{broken[0]['cell']} ({broken[0]['failed'].rstrip('.')})"
        raise UserError(f"{len(broken)} of {len(mine)} cells failed, first {told}; the others are in {out}/sweep.html.")
    return content


def _command(argv: Sequence[str], cell: str) -> str:
    """The command of one cell, to type on any machine that sees the same folders."""
    return shlex.join(["iwm", "sweep", *(word for word in argv if word != "--list"), "--cell", cell])


def _run_here(ready: Sweep, cells: Sequence[Cell]) -> None:
    """Run cells one after the other. Raises Interrupted after Ctrl-C."""
    for cell in cells:
        try:
            with _stoppable({}):
                if ready.run(cell):
                    ready.collect()
        except Interrupted:
            raise Interrupted(f"Stopped in the middle of cell {cell.name}; the same command goes on there.") from None


def _run_apart(ready: Sweep, cells: Sequence[Cell], jobs: int, argv: Sequence[str]) -> None:
    """Run cells as processes of their own, `jobs` at once, each with its share of the cores and DIR/CELL/log.txt.

    Raises Interrupted after Ctrl-C, when all have saved, and UserError when a process broke down.
    """
    waiting = [cell for cell in cells if len(ready.found(cell)) < len(ready.asked(cell))]
    share = {"OMP_NUM_THREADS": str(max(1, devices.cores() // jobs))}
    # As the `iwm` command, so that the results say what to type.
    program = "import sys; sys.argv[0] = 'iwm'; from iwm.cli import main; sys.exit(main())"
    running: dict[str, subprocess.Popen[bytes]] = {}
    crashed = []
    with _stoppable(running), progress("cells") as bar:
        task = bar.add_task("sweep", total=len(waiting), note="")
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0).name
                log = ready.folder / name / "log.txt"
                log.parent.mkdir(parents=True, exist_ok=True)
                words = [sys.executable, "-c", program, "sweep", *argv, "--cell", name]
                with log.open("a") as file:
                    running[name] = subprocess.Popen(
                        words, stdout=file, stderr=file, env=share | os.environ, start_new_session=True
                    )
                console.print(f"{name} started; {log}", soft_wrap=True, markup=False)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                failed = running.pop(name).returncode
                if failed and not run_folder.read_result(ready.folder / name / "cell.json").get("failed"):
                    crashed.append(name)
                bar.advance(task)
            bar.update(task, note=", ".join(running))
            time.sleep(POLL_SECONDS)
    if crashed:
        raise UserError(f"The process of cell {crashed[0]} broke down; see {ready.folder / crashed[0] / 'log.txt'}.")


@contextmanager
def _stoppable(running: Mapping[str, Any]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM: ask every process once to save and stop, wait for all, raise Interrupted.

    Training has its own way to stop; this is for what is around it.
    """

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # elsewhere whoever runs us handles signals
    before = signal.signal(signal.SIGTERM, stop) if ours else None
    try:
        yield
    except KeyboardInterrupt:
        if running:
            console.print("Stopping, the cells are saving...")
        raise Interrupted("All cells have stopped; the same command goes on where they were.") from None
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        if ours:
            signal.signal(signal.SIGTERM, before)
