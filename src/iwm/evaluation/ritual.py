"""The ritual of an evaluation, once for all verbs: what is measured becomes JSON, pictures, weights and a table.

Results lie in `RUN/eval/VERB[-VARIANT]-DATA.json`, one file for every distinct set of settings:

    name = VERB-VARIANT-DATA              where free, or taken by the very same settings and precision
    name = VERB-VARIANT-FINGERPRINT-DATA  where other settings already lie under the plain name

so a repeat replaces only itself, or what it holds whole, and nothing is ever lost. Each file also holds the command,
the settings, their fingerprint, the seed, the machine, the date, and the hash of the weights that were measured
("run_weights"). The weights are no setting: what is measured anew after further training replaces what was measured
before. Pictures and weights of a result lie beside it under the same name.

    with ritual.evaluation("probe", options) as work:
        model = work.world_model()
        ...
        return work.conclude(Outcome(data=..., payload=..., settings=..., figures=...), show)
"""

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from matplotlib.figure import Figure

from iwm import config, verbs
from iwm.data import splits
from iwm.data.sources import source_identity
from iwm.evaluation import grids
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder, identity_if_any, is_remote, load_model, plain_name, read_result, trainings_of
from iwm.runtime import devices, drawing, fields, files, sharing
from iwm.runtime.console import console, hushed, show, tables_are_printed, warnings_once
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.runtime.files import plain

USUAL = "fp32"
"""The precision that settings need not name, so that their fingerprint is that of older results."""
LONGEST = 100
"""Bytes of the data's name in a file's name."""
LONGEST_VARIANT = 80
"""Bytes of the variant in it, which may hold the name of an image and an action."""


@runtime_checkable
class Options(Protocol):
    """What the options of every evaluation have."""

    @property
    def run(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def speed(self) -> config.Speed: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a verb hands over when it has measured."""

    data: str
    """Name of what was measured on, the end of the file's name."""
    payload: Mapping[str, Any]
    """The numbers, and how they came about."""
    settings: Mapping[str, Any]
    """Everything that changes what is computed, the seed among it; "run", and a "precision" other than USUAL, are
    added."""
    variant: Sequence[str] = ()
    """Words that tell this way of measuring from others, for the file's name; empty ones are left out."""
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    """Pictures by the ending of their name: "" is RESULT.png, "averaged" is RESULT-averaged.png."""
    contains: Sequence[Mapping[str, Any]] = ()
    """Settings of results that this one holds whole, and so may replace."""
    weights: Callable[[Path], None] | None = None
    """Writes weights into the folder RESULT/, whose path then stands under "weights"."""


class Content(dict[str, Any]):
    """What a result's file holds, with the file under "path"; `print` prints it as a table."""

    print: Callable[[], None]


@dataclass(frozen=True)
class Evaluation:
    """One verb's work on a RUN."""

    verb: str
    run: str
    out: str
    session: Session
    weights: str = ""
    """`run_folder.identity` of the RUN's weights when the evaluation began; empty where it has none of its own."""

    @property
    def folder(self) -> RunFolder:
        """Where results go. Raises UserError when RUN does not exist."""
        return RunFolder.of(self.run, self.out)

    @property
    def facts(self) -> dict[str, Any]:
        """What every result says."""
        weights = {"run_weights": self.weights} if self.weights else {}
        return {"run": self.run, "precision": self.session.precision, **weights}

    def world_model(self) -> ImageWorldModel:
        """The RUN's world model on the host, as what is trained starts from. Raises UserError when RUN is none."""
        return load_model(self.run)

    def chosen(self, options: Any, *names: str, **sources: str) -> dict[str, Any]:
        """Sources, these of a verb's options, and the precision, as an outcome's settings hold them."""
        own = {name: getattr(options, name) for name in names}
        return {**identities(**sources), **own, "precision": self.session.precision}

    def settings(self, outcome: Outcome) -> dict[str, Any]:
        """The outcome's settings with what tells RUNs apart."""
        return self._of_run(outcome.settings)

    def _of_run(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        precision = self.session.precision
        return {**({} if precision == USUAL else {"precision": precision}), **self._without_precision(settings)}

    def _without_precision(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as older results of several verbs hold them, of any precision: it stands beside."""
        return {**settings, "run": run_identity(self.run, self.out)}

    def place(self, outcome: Outcome) -> Path:
        """The JSON file where the outcome belongs. Raises UserError when the file there is damaged."""
        mark, own = fingerprint(self.settings(outcome)), self.session.precision
        ways = (self._of_run, self._without_precision)
        replaceable = {fingerprint(way(each)) for each in (outcome.settings, *outcome.contains) for way in ways}
        # Disks take 255 bytes, what lies beside adds a few; names cut alike are told apart as other settings are.
        data = plain_name(outcome.data).encode()[:LONGEST].decode(errors="ignore")
        variant = "-".join(plain_name(word) for word in outcome.variant if word)
        variant = variant.encode()[:LONGEST_VARIANT].decode(errors="ignore")
        path = self.folder.eval
        for length in (0, 6, 12, 24, len(mark)):
            words = (self.verb, variant, mark[:length], data)
            path = self.folder.eval / ("-".join(plain_name(word) for word in words if word) + ".json")
            there = read_result(path)
            same = there.get("fingerprint") in replaceable and there.get("precision", own) == own
            if same or not path.exists():
                return path
        raise UserError(f"{path} is damaged; delete it.")

    def conclude(self, outcome: Outcome, print_content: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Print what `print_content` prints of the outcome, and which searches ended at an end of their grid (`grids`),
        write it and print where it lies; returns the content, with the file under "path".

        What took hours is not lost at its end: the numbers are printed before anything is written, and written before
        pictures are drawn. Python callers get an object instead, unless it cannot be written, and the warnings. Raises
        OSError naming the file that cannot be written.
        """
        early = content_of({**self.facts, **outcome.payload}, self.settings(outcome))
        with contextlib.nullcontext() if tables_are_printed() else hushed():
            _print(early, print_content)
        try:
            content = Content(self.write(outcome))
        except OSError:
            if not tables_are_printed():
                _print(early, print_content)
            raise
        content.print = lambda: _print(content, print_content)
        path = Path(content["path"])
        pictures = "".join(f", {_picture(path, ending).name}" for ending in outcome.figures)
        console.print(f"Written to {path}{pictures}", soft_wrap=True)
        return content

    def with_controls(self, outcome: Outcome, measure: Callable[[], Mapping[str, Any]]) -> Outcome:
        """The outcome with the numbers of its controls. It is written before they are measured, so that it is not lost
        where that fails; a result of the same settings that is there already stays till the end."""
        sharing.by_first(lambda: self.place(outcome).exists() or bool(self._write(outcome)))
        return replace(outcome, payload={**outcome.payload, **measure()})

    def write(self, outcome: Outcome) -> dict[str, Any]:
        """Write the numbers, then weights and pictures; returns the content, with the file under "path". Of several
        ranks the first does so, and all get what it wrote."""
        return sharing.by_first(lambda: self._write(outcome))

    def _write(self, outcome: Outcome) -> dict[str, Any]:
        settings, payload = self.settings(outcome), {**self.facts, **outcome.payload}
        with files.lock(self.folder.results_lock, f"A result is written to {self.folder.eval}", wait=True):
            files.mark_output(self.folder.eval)
            path = self.place(outcome)  # nobody else takes the same name meanwhile
            content = write(path, payload, settings)
            if outcome.weights:
                outcome.weights(path.with_suffix(""))
                content = write(path, payload | {"weights": str(path.with_suffix(""))}, settings)
            for ending, draw in outcome.figures.items():
                drawing.save(draw(), _picture(path, ending))
        return {**content, "path": str(path)}


def _picture(path: Path, ending: str) -> Path:
    """The file of a result's picture, whose name ends so."""
    return path.with_name(f"{path.stem}{'-' if ending else ''}{ending}.png")


def _print(content: Mapping[str, Any], print_content: Callable[[Mapping[str, Any]], None]) -> None:
    """The table of a result, and what is to be said of its searches."""
    print_content(content)
    for sentence in grids.sentences(content):
        console.print(f"[yellow]{sentence}", soft_wrap=True)


@contextlib.contextmanager
def evaluation(verb: str, options: Options) -> Iterator[Evaluation]:
    """An evaluation on the device, in the precision and with the threads that the options ask for.

    Several ranks share its images (`iwm.runtime.sharing`); the first alone prints and writes. A held-out tenth that
    RUN, or the encoder beside it, was trained on is refused when it is opened (`splits.measuring`). Raises UserError
    where its results could not be written.
    """
    with Session.open(options.speed) as session, warnings_once():
        work = Evaluation(verb, options.run, options.out, session, identity_if_any(options.run))
        mend = "give another --out FOLDER." if options.out else "give --out FOLDER."
        sharing.by_first(lambda: files.require_writable(work.folder.eval, f"Results of {options.run}", mend))
        beside = getattr(options, "encoder", "")
        with splits.measuring([training for run in (work.run, beside) if run for training in trainings_of(run)]):
            yield work


def printing(title: str, names: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
    """For `conclude`: prints a table of these entries of a result, as far as it has them."""
    return lambda content: show(title, {name: content[name] for name in names if name in content})


def settings_of(options: Any, kind: type) -> dict[str, Any]:
    """The settings of that kind among a verb's options, as they are written down."""
    return fields.to_dict(kind(**verbs.part(options, kind)))


def identities(**sources: str) -> dict[str, str]:
    """Sources as they are written down in settings: paths made absolute, "" for none."""
    return {name: source_identity(source) if source else "" for name, source in sources.items()}


def run_identity(run: str, out: str) -> str:
    """What tells results of several RUNs in one folder apart: empty where the folder is the run's own."""
    if is_remote(run):
        return run
    return str(Path(run).expanduser().resolve()) if out else ""


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hex digest of the settings, whatever the order of their keys."""
    text = json.dumps(plain(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, payload: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result atomically to the place found for it; returns what was written.

    `settings` holds everything that changes what is computed, the seed among it.
    """
    content = content_of(payload, settings)
    files.write_text(path, json.dumps(content, indent=1) + "\n")
    return content


def content_of(payload: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a result's file holds."""
    content = {
        **payload,
        "command": _command(),
        "settings": dict(settings),
        "fingerprint": fingerprint(settings),
        "seed": settings.get("seed"),
        "hardware": devices.describe(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return plain(content)


def _command() -> str:
    """How this process was called, as one types it again; empty where Python is used interactively."""
    if not sys.argv or not sys.argv[0]:
        return ""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "__main__")
    by_module = module != "__main__"  # python -m
    run = ["python", "-m", module.removesuffix(".__main__")] if by_module else [Path(sys.argv[0]).name]
    return shlex.join([*run, *sys.argv[1:]])
