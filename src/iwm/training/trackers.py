"""Trackers: where others keep the curves of a run. `metrics.jsonl` stays the truth; a tracker is sent a copy.

A tracker is one class with one small interface, found by name in `TRACKERS` (run.report_to). Its library is imported
when it is opened. What it needs to go on in the same place, as the id of its run, it keeps in `memory`, which lies in
the run folder. `iwm.training.reporting` says what is sent when.
"""

import importlib
import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from iwm import config
from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.runtime.fields import flatten, to_dict
from iwm.runtime.registry import Registry

PROJECT = "iwm"
"""Project, or experiment, unless the library's own environment variable names another."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Has MLflow's page show the experiment as training, not as an evaluation of language models."""
NAME_LENGTH = 250
"""Characters that MLflow takes of a name."""


class Tracker:
    """Sends a copy of a run's numbers and pictures to one tracker. Every method may raise what the library raises."""

    name: ClassVar[str] = ""
    """What run.report_to calls it."""
    library: ClassVar[str] = ""
    """The module that must be installed."""
    mend: ClassVar[str] = ""
    """What to do where it cannot begin, as the end of a sentence."""

    def __init__(self, run: RunFolder, settings: config.Config, memory: dict[str, Any]) -> None:
        """`memory` is kept in the run folder: what an earlier process of this run put there is there again."""
        self.run, self.settings, self.memory = run, settings, memory
        self.complete = True
        """Whether training has got to its last step, as known when the tracker is closed."""

    def open(self) -> None:
        """Begin a run at the tracker, or go on with the one that `memory` names."""
        raise NotImplementedError

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of a step."""
        raise NotImplementedError

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG."""
        raise NotImplementedError

    def page(self, path: Path, words: str, step: int) -> None:
        """The report of a run, an HTML file, and its verdict in words."""
        raise NotImplementedError

    def close(self) -> None:
        """Have everything delivered and end."""
        raise NotImplementedError

    def plain_settings(self) -> dict[str, Any]:
        """The settings, a name with dots for each."""
        return flatten(to_dict(self.settings))


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`."""

    name, library = "tensorboard", "tensorboard"
    mend = "check the disk"

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A run that began anew must not be drawn over the one before.
        begun = self.memory.setdefault("id", time.strftime("%Y%m%d-%H%M%S"))
        self.writer = SummaryWriter(str(self.run.tensorboard / begun))
        if not self.memory.get("settings"):
            lines = [f"    {name}: {json.dumps(value)}" for name, value in self.plain_settings().items()]
            self.writer.add_text("settings", "\n".join(lines), 0)
            self.memory["settings"] = True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a run that is killed has shown what it was said to have sent

    def picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def page(self, path: Path, words: str, step: int) -> None:
        self.writer.add_text("report", f"{words}\n\nThe page: `{path.resolve()}`", step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases; WANDB_MODE=offline keeps all of it in RUN/wandb, for `wandb sync`."""

    name = library = "wandb"
    mend = "run `wandb login`, or set WANDB_MODE=offline"

    def open(self) -> None:
        wandb: Any = importlib.import_module("wandb")

        self.memory.setdefault("id", secrets.token_hex(4))
        self.memory.setdefault("project", os.environ.get("WANDB_PROJECT", PROJECT))
        self.memory["calls"] = self.memory.get("calls", 0) + 1  # an earlier process may not have noted its last one
        self.wandb = wandb
        self.session = wandb.init(
            project=self.memory["project"],
            name=self.run.name,
            id=self.memory["id"],
            resume="allow",
            dir=str(self.run.path),
            config=self.plain_settings(),
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        self.session.define_metric("*", step_metric="step")

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        """W&B drops what does not come with a larger number than before, also of an offline run that goes on: every
        call has the next one, and curves are drawn over our own step."""
        self.memory["calls"] += 1
        self.session.log({"step": step, **values}, step=self.memory["calls"])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._log(step, {name: self.wandb.Image(str(path))})

    def page(self, path: Path, words: str, step: int) -> None:
        self._log(step, {"report": self.wandb.Html(str(path), inject=False)})
        self.session.notes = words

    def close(self) -> None:
        self.session.finish(exit_code=0 if self.complete else 1)  # which W&B shows as failed


class Trackio(Tracker):
    """Trackio, on this machine (`trackio show --project iwm`) or a Space of the Hugging Face hub (TRACKIO_SPACE_ID)."""

    name = library = "trackio"
    mend = "check its settings and the network"

    def open(self) -> None:
        trackio: Any = importlib.import_module("trackio")

        self.memory.setdefault("id", f"{self.run.name}-{secrets.token_hex(2)}")
        self.memory.setdefault("project", os.environ.get("TRACKIO_PROJECT", PROJECT))
        self.trackio = trackio
        self.session = trackio.init(
            self.memory["project"],
            name=self.memory["id"],
            config=self.plain_settings(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.session.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.session.log({name: self.trackio.Image(path)}, step=step)

    def page(self, path: Path, words: str, step: int) -> None:
        self.session.log({"report": self.trackio.Markdown(f"{words}\n\nThe page: `{path.resolve()}`")}, step=step)

    def close(self) -> None:
        self.session.finish()


class MLflow(Tracker):
    """MLflow, where MLFLOW_TRACKING_URI says; by default a database in the folder that the training was started in."""

    name = library = "mlflow"
    mend = "check MLFLOW_TRACKING_URI and the server"

    def open(self) -> None:
        mlflow: Any = importlib.import_module("mlflow")

        here = mlflow.get_tracking_uri()
        place = here if "MLFLOW_TRACKING_URI" in os.environ else self.memory.setdefault("place", here)
        self.entities = mlflow.entities
        self.client = mlflow.MlflowClient(tracking_uri=place)
        if "id" in self.memory:
            self.client.update_run(self.memory["id"], status="RUNNING")
        else:
            self.memory["id"] = self.client.create_run(self._experiment(mlflow), run_name=self.run.name).info.run_id
        if not self.memory.get("settings"):
            self._send_settings()
            self.memory["settings"] = True

    def _experiment(self, mlflow: Any) -> str:
        """The id of the experiment, which is made where there is none."""
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(title)
        try:
            return known.experiment_id if known else self.client.create_experiment(title, tags=KIND)
        except mlflow.exceptions.MlflowException:  # another run has made it meanwhile
            return self.client.get_experiment_by_name(title).experiment_id

    def _send_settings(self) -> None:
        """The settings that the run lacks: an attempt before may have sent some, and none may change its value."""
        present = self.client.get_run(self.memory["id"]).data.params
        lacking = {name: value for name, value in self.plain_settings().items() if name not in present}
        params = [self.entities.Param(name, json.dumps(value)) for name, value in lacking.items()]
        for start in range(0, len(params), 100):  # of one request
            self.client.log_batch(self.memory["id"], params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now, names = int(time.time() * 1000), self._names(values)
        metrics = [self.entities.Metric(names[name], value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):  # of one request
            self.client.log_batch(self.memory["id"], metrics=metrics[start : start + 1000])

    def _names(self, values: Iterable[str]) -> dict[str, str]:
        """What each is called at MLflow, the same in every line; where two would become one, the later one is
        numbered."""
        owners = self.memory.setdefault("names", {})
        names = {owner: name for name, owner in owners.items()}
        for owner in sorted(set(values) - set(names), key=lambda one: (one != mlflow_name(one), one)):
            plain = name = mlflow_name(owner)
            number = 1
            while name in owners:
                number += 1
                name = f"{plain[: NAME_LENGTH - 10]}_{number}"
            owners[name], names[owner] = owner, name
        return names

    def picture(self, name: str, path: Path, step: int) -> None:
        self.client.log_artifact(self.memory["id"], str(path), "pictures")

    def page(self, path: Path, words: str, step: int) -> None:
        self.client.log_artifact(self.memory["id"], str(path))
        self.client.set_tag(self.memory["id"], "mlflow.note.content", words)

    def close(self) -> None:
        self.client.set_terminated(self.memory["id"], "FINISHED" if self.complete else "KILLED")


def mlflow_name(name: str) -> str:
    """A name of a number as MLflow takes it, other characters as `_`: ASCII letters and digits, `_`, `-`, `.`, `:`,
    spaces, and `/` as in a path, between parts that are not empty, not `.`, and do not begin with `..`."""
    parts = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII).split("/")
    return "/".join(re.sub(r"^\.\.|^\.?$", "_", part) for part in parts)[:NAME_LENGTH].rstrip("/")


TRACKERS: Registry[Tracker] = Registry(
    Tracker, "run.report_to", "register_tracker", TensorBoard, WandB, Trackio, MLflow
)
"""All trackers by name."""
register_tracker = TRACKERS.register


def trackers_of(names: str) -> list[type[Tracker]]:
    """The trackers of a comma-separated list. Raises UserError for an unknown one, and one whose library is absent."""
    kinds = [TRACKERS.find(name) for name in dict.fromkeys(part.strip() for part in names.split(",")) if name]
    absent = [kind for kind in kinds if kind.library and importlib.util.find_spec(kind.library) is None]
    if absent:
        raise UserError(
            f"run.report_to names {absent[0].name}, whose library is not installed; install: pip install "
            f"{absent[0].library}."
        )
    return kinds
