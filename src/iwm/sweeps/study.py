"""The runs of a sweep in one folder: which there are, where each stands, and what to do next.

A cell is a recipe with overrides: one pretraining in a run folder of its own, DIR/CELL, measured by one protocol (MRR
on the bank common to all, linear probe, attentive probe, predictor finetuning). What is finished is never done again,
so a sweep may be stopped, go on elsewhere (`--list`, `--cell`), or grow. DIR/sweep.json is written after every cell.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from iwm import verbs
from iwm.config import LATER, Config
from iwm.data.file_states import files_mark
from iwm.data.sources import labelled_splits, open_splits, source_identity
from iwm.evaluation import ritual
from iwm.model import weights
from iwm.reports.finding import join, number
from iwm.reports.verdict import judge_training
from iwm.run_folder import RunFolder, read_result, same_init
from iwm.runtime import devices, fields, files
from iwm.runtime.console import console
from iwm.runtime.errors import Busy, UserError, is_out_of_memory
from iwm.runtime.files import plain
from iwm.sweeps import guidance, measurement, page, subset
from iwm.sweeps.axes import Cell, cells_of
from iwm.training import loop
from iwm.training.validation import validate, with_encoder
from iwm.verbs.sweep import Axes, Protocol, Sweep

VARIED = (
    *("predictor.conditioning", "predictor.depth", "predictor.width", "actions.level"),
    "objective.invariance_weight",
)
"""The settings that make the cells of one recipe."""


@dataclass(frozen=True)
class Study:
    """All cells of a sweep in one folder, with where each of them stands."""

    options: Sweep
    source: str = ""
    """What is trained on, once `prepare` has run; paths as they were typed."""
    data: str = ""
    """What is measured on."""
    val: str = ""
    data_mark: str = ""
    """Mark of the files that is measured on; empty for a choice of images of the sweep's own, whose name tells."""

    @property
    def folder(self) -> Path:
        return Path(self.base.run.out).expanduser()

    @property
    def images_folder(self) -> Path:
        """Where `prepare` writes a choice of images."""
        return self.folder / "images"

    @property
    def base(self) -> Config:
        """The settings that all cells of the grid share."""
        return self.options.settings

    @cached_property
    def cells(self) -> list[Cell]:
        base, *others = (
            replace(settings, data=replace(settings.data, source=self.source or settings.data.source))
            for settings in (self.base, *self.options.others)
        )
        return cells_of(base, self.options, others)

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on. Sources stand there as they were typed: DIR/sweep.json is for others to read; the
        place they stand for is a mark."""
        source = self.base.data.source
        own = {"images": self.options.images, "data.source": source}
        axes = verbs.part(self.options, Axes)
        if not axes["invariance"]:  # an axis that came after the first sweeps
            del axes["invariance"]
        return plain(
            {
                "recipe": self.base.recipe,
                "recipes": [other.recipe for other in self.options.others],
                "pretraining": {k: v for k, v in learned(self.base).items() if k not in VARIED} | own,
                "source_mark": _source_mark(source),
                "axes": axes,
                "protocol": verbs.part(self.options, Protocol),
                "seed": self.base.run.seed,
            }
        )

    def require_same(self) -> None:
        """Raises UserError when the folder holds a sweep of another recipe or pretraining, or no sweep at all."""
        path = self.folder / "sweep.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; give a folder as --out.")
        if not path.exists() and RunFolder(self.folder).config.exists():
            raise UserError(f"{self.folder} holds a run and no sweep; give another --out.")
        if not path.exists():
            return
        there = read_result(path).get("settings")
        if not isinstance(there, dict) or not isinstance(there.get("pretraining"), dict):
            raise UserError(f"{path} is damaged; delete it, the cells beside it are kept and collected anew.")
        if there.get("recipe") != self.base.recipe:
            raise UserError(
                f"{self.folder} holds a sweep of recipe {there.get('recipe')}, not {self.base.recipe}; give another "
                "--out."
            )
        self._require_same_pretraining(there)

    def _require_same_pretraining(self, there: Mapping[str, Any]) -> None:
        before, now = there["pretraining"], self.settings["pretraining"]
        for name in now | before:
            was, is_ = before.get(name), now.get(name)
            if name == "data.source":
                # Folders of older versions hold no mark, but the place itself.
                if (there.get("source_mark") or _source_mark(str(was))) == self.settings["source_mark"]:
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

    def prepare(self, *, dry_run: bool = False) -> "Study":
        """The same on the chosen images; a dry run chooses none, and takes those that a sweep has chosen before. Raises
        UserError when they, or a setting, will not do."""
        o, choose = self.options, subset.written if dry_run else subset.write
        size, seed = self.base.data.image_size, self.base.run.seed
        source, val = self.base.data.source, o.val
        data = o.eval_data or source
        for cell in self.cells:
            validate(with_encoder(cell.settings))
        if o.needs_labels:
            labelled_splits(data, val, size=size)
        files.require_writable(self.folder, "The sweep", "give another --out.")
        train_set, test_set, _ = open_splits(data, val, size=size)
        mark = "" if any(o.eval_images) else files_mark(train_set, test_set)
        if any(o.eval_images):
            data, val = choose(train_set, test_set, o.eval_images, size, seed, self.images_folder) or data, ""
            self._require_labels(data)
        if o.images:
            train_set, test_set, _ = open_splits(source, size=size)
            source = choose(train_set, test_set, (o.images, 1000), size, seed, self.images_folder) or source
        return replace(self, source=source, data=data, val=val, data_mark=mark)

    def _require_labels(self, chosen: str) -> None:
        """Raises UserError where too few images were chosen to learn every class that is asked for."""
        if not self.options.needs_labels:
            return
        try:
            labelled_splits(chosen, size=self.base.data.image_size)
        except UserError as error:
            counts = " ".join(map(str, self.options.eval_images))
            raise UserError(f"--eval-images {counts} are too few, give more: {error}") from None

    def run_of(self, cell: Cell) -> RunFolder:
        return RunFolder(self.folder / cell.name)

    def evaluations(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """The evaluations of a cell, by name, with their settings; the first cell has the controls for all."""
        every = self.options.evaluations(controls=cell == self.cells[0])
        return {name: how for name, how in every.items() if cell.predicts or name not in measurement.NEEDS_PREDICTOR}

    def marks(self, cell: Cell, name: str) -> tuple[str, str]:
        """Fingerprints of all that one evaluation's number depends on: the present one, and that of older sweeps, which
        did not know the files that the images lie in."""
        where = {"data": source_identity(self.data), "val": source_identity(self.val) if self.val else ""}
        question = {"pretraining": learned(cell.settings), name: self.evaluations(cell)[name], **where}
        present = question | ({"files": self.data_mark} if self.data_mark else {})
        return ritual.fingerprint(present), ritual.fingerprint(question)

    def record(self, cell: Cell) -> dict[str, Any]:
        """DIR/CELL/cell.json: by evaluation, which question was put ("asked") and which result answers it."""
        return read_result(self._record_file(cell))

    @cached_property
    def precision(self) -> str:
        """What is measured in here and now; empty where the device that was asked for is not there."""
        try:
            return devices.precision_of(self.base.speed, devices.device_of(self.base.speed))
        except UserError:
            return ""

    def results(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """By evaluation, the cell's results of the weights it holds, with exactly the present settings; of any
        precision (older results name none) unless one was asked for."""
        record, wish = self.record(cell), cell.settings.speed.precision
        if not record:
            return {}
        there = {result["fingerprint"]: result for result in self.run_of(cell).results_of_weights()[0]}
        answers = {name: record.get(name) for name in self.evaluations(cell)}
        return {
            name: there[answer["result"]]
            for name, answer in answers.items()
            if isinstance(answer, dict)
            and answer.get("asked") in self.marks(cell, name)
            and answer.get("result") in there
            and wish in ("auto", there[answer["result"]].get("precision", wish))
        }

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell is measured, and trained or cleared of weights and checkpoints: what lies there otherwise is
        another training than its results are of."""
        if len(self.results(cell)) < len(self.evaluations(cell)):
            return False
        folder = self.run_of(cell)
        cleared = not weights.are_in(folder.model) and not folder.checkpoints.is_dir()
        return cleared or is_trained(folder, cell.settings)

    def run(self, cell: Cell) -> bool:
        """Train a cell and measure what has not been measured; returns whether there was anything to do.

        An evaluation that cannot be done, or runs out of memory, is left out with the sentence why; so is a cell that
        diverges or does. A cell that another process trains is passed over.
        """
        folder = self.run_of(cell)
        if self.is_finished(cell):
            return False
        console.rule(f"{cell.name} ({self.cells.index(cell) + 1} of {len(self.cells)})")
        settings = replace(cell.settings, run=replace(cell.settings.run, out=str(folder.path)))
        record: dict[str, Any] = {name: self.record(cell).get(name) for name in self.evaluations(cell)}
        try:
            if not is_trained(folder, cell.settings):
                loop.pretrain(settings)
        except Busy as error:
            console.print(f"[yellow]{cell.name} is passed over: {error}")
            return False
        except (UserError, RuntimeError, MemoryError) as error:
            reason = _reason(error, "give --speed.checkpoint-blocks or fewer --jobs")
            self._note(cell, record | {"failed": reason})
            console.print(f"[yellow]{cell.name} failed: {reason}")
            return True
        self._note(cell, record)  # no longer that it failed
        for name, how in self.evaluations(cell).items():
            if name in self.results(cell):
                continue
            answer: dict[str, Any] = {"asked": self.marks(cell, name)[0]}
            try:
                result = measurement.measure(name, str(folder.path), self.data, self.val, settings, how)
                answer["result"] = result["fingerprint"]
            except (UserError, RuntimeError, MemoryError) as error:
                answer["refused"] = _reason(error, "give fewer --jobs")
                console.print(f"[yellow]{cell.name}, {name} is left out: {answer['refused']}")
            record[name] = answer
            self._note(cell, record)
        return True

    def _record_file(self, cell: Cell) -> Path:
        return self.run_of(cell).path / "cell.json"

    def _note(self, cell: Cell, record: dict[str, Any]) -> None:
        files.write_text(self._record_file(cell), json.dumps(record, indent=1) + "\n")

    def row(self, cell: Cell) -> dict[str, Any]:
        """What DIR/sweep.json says of a cell; None for what has not been measured."""
        results, record = self.results(cell), self.record(cell)
        world, linear = results.get("world", {}), results.get("linear", {})
        mrr, own = number(world, "mrr"), number(world, "mrr_own_range")
        precisions = sorted({result["precision"] for result in results.values() if "precision" in result})
        healthy, health = _health(self.run_of(cell))
        answers = {name: record[name] for name in self.evaluations(cell) if isinstance(record.get(name), dict)}
        return {
            "cell": cell.name,
            "state": self._state(cell),
            "recipe": cell.settings.recipe,
            "conditioning": cell.conditioning,
            "difficulty": cell.difficulty,
            "predictor": cell.predictor,
            "invariance": cell.invariance,
            "mrr": mrr,
            **{name: number(results.get(name, {}), "top1") for name in guidance.ACCURACIES},
            "mrr_standard_error": number(world, "mrr_standard_error"),
            "mrr_chance": number(world, "mrr_chance"),
            **{name: number(world, name) for name in ("mrr_calibrated", "mrr_common")},
            "mrr_own_range": mrr if own is None else own,
            "precision": join(precisions) or None,
            "n_val": next((result["n_val"] for result in results.values() if "n_val" in result), None),
            "random_encoder_top1": number(linear, "random_encoder_top1"),
            "raw_pixels_top1": number(linear, "raw_pixels_top1"),
            "chance_top1": number(linear, "chance"),
            "healthy": healthy,
            "health": health,
            "failed": record.get("failed"),
            "at_grid_end": {name: ends for name, r in results.items() if (ends := r.get("at_grid_end"))},
            "refused": {name: answer["refused"] for name, answer in answers.items() if "refused" in answer},
        }

    def _state(self, cell: Cell) -> str:
        record = self.record(cell)
        if not record and not self.run_of(cell).config.exists():
            return "waiting"
        if "failed" in record:
            return "failed"
        return "finished" if self.is_finished(cell) else "partial"

    def collect(self) -> dict[str, Any]:
        """Write DIR/sweep.json, the pictures and DIR/sweep.html from what the cells hold; returns the content."""
        runs = [self.row(cell) for cell in self.cells]
        content = {
            "runs": runs,
            "correlations": guidance.correlations(runs),
            "tables": guidance.tables(runs),
            "guidance": [vars(finding) for finding in guidance.advise(runs)],
            "precision_note": guidance.precision_note(runs, self.precision),
        }
        with devices.threads(self.base.speed):
            content = ritual.write(self.folder / "sweep.json", content, self.settings)
        page.write(self.folder, content)
        return content


def learned(settings: Config) -> dict[str, Any]:
    """The settings that decide what is learned, flat; the source as anybody finds it again.

    Of settings that came after the first sweeps (`config.LATER`) only those that are not at their default, so that
    older sweeps go on.
    """
    settings = replace(settings, data=replace(settings.data, source=source_identity(settings.data.source)))
    flat = fields.flatten(fields.to_dict(settings))
    flat["optim.freeze_encoder"] = settings.encoder.train == "none"  # as it was called in the first sweeps
    default = fields.flatten(fields.to_dict(Config()))
    flat = {k: v for k, v in flat.items() if k not in LATER or v != default[k]}
    return {k: v for k, v in flat.items() if k == "run.seed" or k.split(".")[0] not in ("speed", "run", "recipe")}


def is_trained(folder: RunFolder, settings: Config) -> bool:
    """Whether the folder's exported weights are those of a finished training with these settings."""
    trained_with = read_result(folder.model / weights.CONFIG).get("settings")
    if not isinstance(trained_with, dict) or not weights.are_in(folder.model):
        return False
    # What is exported names the sizes of an encoder of others; a cell's settings leave them to its name.
    then, now = fields.from_dict(Config, trained_with), with_encoder(settings)
    return same_init(then.init, now.init) and learned(replace(then, init="")) == learned(replace(now, init=""))


def _reason(error: Exception, mend: str) -> str:
    """Why something was not done; the `mend` is for lack of memory. Raises what is a mistake of our own."""
    if isinstance(error, UserError):
        return str(error)
    if not is_out_of_memory(error):
        raise error
    return f"Out of memory: {mend}, end other programs, or take a machine with more memory."


def _source_mark(source: str) -> str:
    return ritual.fingerprint({"source": source_identity(source)})


def _health(folder: RunFolder) -> tuple[bool | None, str | None]:
    """The doctor's verdict on a cell's training, without what was measured beside."""
    if not folder.metrics.is_file():
        return None, None
    finding = judge_training(folder.metric_lines(), folder.objective_kind())
    return finding.good, finding.sentence.split("\n")[0]
