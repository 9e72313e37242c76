"""A RUN: what lies in its folder, found, read and named in one place.

config.yaml       settings, as the run was started
metrics.jsonl     a line every `run.log_every` steps
gallery.png       views and masks of one step
stages.png        what it imagined of held-out photos while it was trained; stages.safetensors: the pictures alone
checkpoints/      what training goes on from
model/            weights for use (`iwm.model.weights`), and the pixel decoder fitted to them
eval/             results: VERB[-VARIANT]-DATA.json, with pictures and weights of the same name beside them
report.html       the page
trackers/         which run of a tracker this is, and what it was told: NAME.json
tensorboard/      curves for TensorBoard; wandb/: what Weights & Biases keeps here

A RUN may also be a name and no place on this disk: hf-hub:user/name, timm:NAME, and `demo`, the model in the package.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iwm.config import Config, load
from iwm.data.splits import Training, records_by_source
from iwm.model import hub, pixel_decoder, weights
from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.pretrained import is_timm
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import settings_file
from iwm.runtime.console import console
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.runtime.fields import as_text
from iwm.runtime.files import sha256_of

SHIPPED = "demo"
"""The RUN that is the model in the package. A folder of that name is `./demo`."""
SHIPPED_FOLDER = Path(__file__).parent / "model" / "assets" / "demo"
EARLIER = "of_earlier_weights"
"""Stands, and is true, in one of `RunFolder.results` that was measured on other weights than its RUN holds now."""


@dataclass(frozen=True)
class RunFolder:
    """The local folder of a RUN. Nothing in it needs to exist."""

    path: Path

    @classmethod
    def of(cls, run: str | Path, out: str = "") -> "RunFolder":
        """The folder under which `eval/` of a RUN lies.

        `out` where given; a run folder itself; the run folder of exported weights (its `model/`, or a file in it); for
        what is no local folder (demo, hf-hub:, timm:) `./iwm-eval/NAME`. Raises UserError when a local RUN does not
        exist.
        """
        run = as_text(run)
        if out:
            return cls(Path(out).expanduser())
        if is_remote(run):
            return cls(Path("iwm-eval") / plain_name(run.split(",")[0]))
        path = Path(run).expanduser()
        if not path.exists():
            raise not_a_run(run)
        if path.is_file():
            path = path.parent
        # RUN/model names the run as well as RUN does: their results belong together.
        whole = path.resolve()
        is_model = whole.name == "model" and cls(whole.parent).config.is_file()
        return cls(whole.parent if is_model else path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery.png"

    @property
    def stages(self) -> Path:
        """What the model imagined before, half-way through and after its training (`iwm demo`)."""
        return self.path / "stages.png"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def training_lock(self) -> Path:
        """There, and locked, while a process trains this run."""
        return self.path / ".training.lock"

    @property
    def results_lock(self) -> Path:
        """There, and locked, while a process writes a result."""
        return self.eval / ".results.lock"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    @property
    def cache(self) -> Path:
        """Features that were computed once, by their content."""
        return self.eval / "cache"

    @property
    def twin(self) -> "RunFolder":
        """The twin with a frozen random encoder, a run of its own."""
        return RunFolder(self.eval / "frozen-random-twin")

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def tracker(self, name: str) -> Path:
        """What a tracker was told (`iwm.training.reporting`)."""
        return self.path / "trackers" / f"{name}.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def require(self, *parts: str) -> "RunFolder":
        """The folder itself. Raises UserError unless one of these parts ("config", "metrics", ...) is there."""
        paths = [getattr(self, part) for part in parts]
        if not any(path.exists() for path in paths):
            raise not_a_run(str(self.path), " or ".join(path.name for path in paths))
        return self

    def settings(self) -> Config:
        """The settings of `config.yaml`. Raises UserError when it is missing or damaged."""
        return load(self.config)

    def settings_unchecked(self) -> dict[str, Any]:
        """`config.yaml` as it stands, empty when it cannot be read: old runs must still be shown."""
        return settings_file.read_unchecked(self.config)

    def objective_kind(self) -> str:
        """The objective.kind of a run, of any age; empty where its `config.yaml` does not say."""
        group = self.settings_unchecked().get("objective")
        return str(group.get("kind", "")) if isinstance(group, dict) else ""

    def metric_lines(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; none where there is no such file. Raises UserError when it is damaged."""
        return read_metrics(self.metrics) if self.metrics.is_file() else []

    def results(self) -> list[dict[str, Any]]:
        """All results in order of their file names, each with its own name under "file" (without .json), and with
        EARLIER where it was measured on other weights than its RUN holds now.

        Results that do not name their weights, as older ones, and those of weights that are not on this disk have no
        EARLIER. Damaged files are named on the console and left out.
        """
        results = []
        present = functools.cache(lambda run: "" if run.startswith("hf-hub:") else identity_if_any(run))
        for path in sorted(self.eval.glob("*.json")):
            content = read_result(path)
            if "fingerprint" in content:
                held = present(run_of(content) or str(self.path.absolute())) if weights_of(content) else ""
                earlier = {EARLIER: True} if held not in ("", weights_of(content)) else {}
                results.append({"file": path.stem, **content, **earlier})
            else:
                console.print(f"[yellow]{path} is no readable result and is left out.")
        return results

    def results_of_weights(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The `results` of the weights that the RUN holds, and the names of those of earlier weights."""
        results = self.results()
        return [one for one in results if not one.get(EARLIER)], [one["file"] for one in results if one.get(EARLIER)]

    def picture_of(self, result: Mapping[str, Any]) -> Path:
        """The picture of one of the `results`; there may be none."""
        return self.eval / f"{result['file']}.png"

    def weights_of_results(self) -> list[Path]:
        """The folders of weights that finetuning wrote beside its results."""
        return [path.parent for path in sorted(self.eval.glob(f"*/{weights.CONFIG}"))]


def not_a_run(run: str, lacks: str = "") -> UserError:
    """The sentence for what was given as RUN and is none."""
    mend = "give the --out folder of an `iwm pretrain`."
    if not lacks:
        return UserError(f"There is no run at {run}; {mend}")
    return UserError(f"{run} is not a run: it has no {lacks}; {mend}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line torn by a crash is left out. Raises UserError for any other damage."""
    # What follows the last newline is torn, or empty. Bytes that are no text spoil their own line only.
    *lines, _torn = path.read_text(errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {path} is damaged; delete that line.") from None
        records.append(record)
    return records


def is_remote(run: str) -> bool:
    """Whether RUN is a name (demo, hf-hub:, timm:) and no place on this disk."""
    return run == SHIPPED or run.startswith(("hf-hub:", "timm:"))


def init_identity(init: str) -> str:
    """How a RUN to start from (`init`) is written down in settings: the absolute path of a local one, of RUN itself for
    its model/; names, and what is not there, as they are."""
    local = init and not is_remote(init) and Path(init).expanduser().exists()
    return str(RunFolder.of(init).path.resolve()) if local else init


def same_init(init: str, now_at: str) -> bool:
    """Whether a RUN to start from is the one that is there now: in the same place, or moved and no longer there."""
    if init_identity(init) == init_identity(now_at):
        return True
    moved = not is_remote(init) and not is_remote(now_at) and not Path(init).expanduser().exists()
    return moved and Path(init).name == Path(now_at).name


def plain_name(text: str) -> str:
    """A name fit for a file on any system: letters, digits, dot, plus, underscore and dash."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"


def read_result(path: Path) -> dict[str, Any]:
    """A result, or an empty dictionary for what is none (absent, damaged, or somebody else's file)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def weights_of(result: Mapping[str, Any]) -> str:
    """`identity` of the weights that a result was measured on; empty where it does not name them, as older ones."""
    settings = result.get("settings")
    of_settings = settings.get("weights") if isinstance(settings, Mapping) else ""  # so `iwm efficiency` always did
    own = result.get("run_weights") or of_settings
    return own if isinstance(own, str) else ""


def run_of(result: Mapping[str, Any]) -> str:
    """The RUN that a result was measured on, as its settings name it: empty for the run of the folder it lies in."""
    settings = result.get("settings")
    run = settings.get("run") if isinstance(settings, Mapping) else ""
    return run if isinstance(run, str) else ""


def find_weights(run: str) -> Path:
    """The folder that holds `model.safetensors` and `config.json` for a RUN.

    RUN is a run folder, a folder or file of exported weights, `demo`, or hf-hub:user/name (or user/name@REVISION).
    Raises UserError when it is none.
    """
    if run == SHIPPED:
        return SHIPPED_FOLDER
    if run.startswith("hf-hub:"):
        return hub.fetch(run.removeprefix("hf-hub:"))
    path = Path(run).expanduser()
    if path.is_file():
        path = path.parent
    if not path.exists():
        raise not_a_run(run)
    folder = RunFolder(path)
    for place in (folder.model, path):
        if weights.are_in(place):
            return place
    if folder.checkpoints.is_dir():
        raise UserError(f"{run} has no finished weights yet; let its `iwm pretrain` write model/ first.")
    raise not_a_run(run, f"model/{weights.TENSORS} and {weights.CONFIG}")


def load_model(run: str | Path, device: str | torch.device = "cpu") -> ImageWorldModel:
    """Load a trained world model in eval mode.

    `demo` is the model in the package. Raises UserError when RUN is none, or is damaged.
    """
    run = as_text(run)
    if run == SHIPPED and RunFolder(Path(SHIPPED)).model.exists():
        console.print(f"[yellow]'{SHIPPED}' is the model in the package; the run of that name here is ./{SHIPPED}.")
    if is_timm(run):
        raise UserError(
            f"{run} is an encoder without a predictor; train one on it (iwm pretrain on-encoder --encoder.name {run}), "
            "or take `iwm probe`."
        )
    model = weights.read_model(find_weights(run), device)
    model.decoder = _decoder_of(run, device)
    return model


def decoder_file(run: str) -> Path:
    """Where the pixel decoder of a RUN lies: beside its weights; of a remote one under `./iwm-eval/NAME`.

    Raises UserError when there are no weights.
    """
    return (RunFolder.of(run).path if is_remote(run) else find_weights(run)) / weights.DECODER


def _decoder_of(run: str, device: str | torch.device) -> PixelDecoder | None:
    """The pixel decoder of a RUN; None where there is none, or one that was fitted to weights of before."""
    for path in dict.fromkeys((decoder_file(run), find_weights(run) / weights.DECODER)):
        if not path.is_file():
            continue
        try:
            decoder, mark = pixel_decoder.read(path)
        except UserError as damage:
            console.print(f"[yellow]{damage} Until then it is not used.", soft_wrap=True)
            continue
        if mark == identity(run):
            return decoder.to(device)
        console.print(
            f"[yellow]{path} was fitted to other weights than {run} has now and is not used; run iwm decoder again.",
            soft_wrap=True,
        )
    return None


def open_world(run: str, session: Session) -> ImageWorldModel:
    """Load a RUN to ask its predictor, on the session's device and with the attention kernel that suits it.

    Raises UserError when RUN is none, is damaged, or has no predictor.
    """
    model = load_model(run, session.device)
    model.require_predictor()
    choose_attention(model, session.device, session.precision)
    return model


def settings_of_weights(run: str) -> dict[str, Any]:
    """The settings that a RUN's weights were trained with, as they were written; empty where they cannot be read."""
    settings = _meta_if_any(run).get("settings")
    return settings if isinstance(settings, dict) else {}


def trainings_of(run: str, later: Sequence[str] = ()) -> list[Training]:
    """What a RUN's weights note of the sources of which a tenth was held out by lot in their training, and then what
    those note that it began with (`trainings_before`); nothing of older weights, of those of timm, and where there are
    none. The RUNs `later` began with it and are not asked again."""
    meta = {} if is_timm(run) else _meta_if_any(run)
    source = meta["settings"]["data"]["source"] if meta.get("training_images") else ""
    own = [Training(run, part, record) for part, record in records_by_source(source, meta.get("training_images"))]
    return own + trainings_before(str(meta.get("settings", {}).get("init") or ""), later)


def trainings_before(init: str, later: Sequence[str] = ()) -> list[Training]:
    """`trainings_of` the weights that a run begins with (its `init`), while they are on this disk."""
    return [] if not init or is_remote(init) or init in later else trainings_of(init, (*later, init))


def _meta_if_any(run: str) -> dict[str, Any]:
    """What `config.json` of a RUN's weights holds; empty where it cannot be read."""
    try:
        return weights.read_meta(find_weights(run))
    except (UserError, OSError, ValueError):
        return {}


def identity(run: str) -> str:
    """Content hash of a RUN's weights, as their `config.json` notes it and `weights.read_model` checks it; of older
    weights, which note none, it is computed. Raises UserError when there are none, or they cannot be read."""
    place = find_weights(run)
    try:
        noted = weights.read_meta(place).get("sha256")
    except (OSError, ValueError) as error:
        raise UserError(f"The weights in {place} cannot be read ({error}); export them again.") from None
    return noted if isinstance(noted, str) else sha256_of(place / weights.TENSORS)


def identity_if_any(run: str) -> str:
    """`identity`; empty for a RUN without weights that can be read, and for a name of timm."""
    if is_timm(run):
        return ""
    try:
        return identity(run)
    except UserError:  # whoever opens the weights says what is wrong with them
        return ""
