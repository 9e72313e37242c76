"""What is called while a model is trained: the run's own measures, trackers, and objects of the user's own.

A callback is any object with one or more of the methods of `Callback`; it needs not inherit from it:

    class Curve:
        def on_log(self, state, line):
            print(state.step, line["loss"])

    iwm.pretrain("demo", out="runs/mine", callbacks=[Curve()])

The run's own measures come first, then the user's callbacks in their order, then what writes and shows the line. Of
several ranks rank 0 alone calls the user's; of a model that is sharded it then holds its own shard.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from iwm.config import Config
from iwm.data.image_sets import ImageSet
from iwm.data.loader import Batch
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime import distributed
from iwm.runtime.errors import UserError, did_you_mean
from iwm.training.step import Training


@dataclass
class State:
    """What a callback sees of a run. The same object is handed to every call and changes from step to step."""

    run: RunFolder
    training: Training
    """Model, optimisers, schedule and device."""
    images: ImageSet
    """The training images."""
    step: int
    """Steps that are done."""
    steps: int
    """Steps of the whole run."""
    batch: Batch = field(init=False)
    """Crops, labels and indices of the latest step; like `loss` and `finite` not there before the first."""
    loss: Tensor = field(init=False)
    """Loss of the latest step, a scalar on the device: `float(state.loss)` waits for the device."""
    finite: Tensor = field(init=False)
    """Whether loss and gradient of the latest step were finite, a scalar on the device."""
    line: dict[str, Any] = field(init=False, default_factory=dict)
    """The latest line of metrics."""

    @property
    def model(self) -> ImageWorldModel:
        return self.training.model

    @property
    def settings(self) -> Config:
        return self.training.settings

    @property
    def final(self) -> bool:
        """Whether the latest step is the last one."""
        return self.step == self.steps


class Callback:
    """The methods that a callback may have; each does nothing here. An exception in one of them ends the run."""

    def on_start(self, state: State) -> None:
        """Before the first step, also of a run that goes on."""

    def on_step(self, state: State) -> None:
        """After every step. Whatever reads a tensor of the device here slows training down."""

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        """Every `run.log_every` steps, with the line of metrics, to which numbers may be added: `line["mine"] = 0.5`.

        The line is then written to `metrics.jsonl`.
        """

    def on_checkpoint(self, state: State, path: Path) -> None:
        """After a checkpoint was written to the folder `path`."""

    def on_end(self, state: State) -> None:
        """After the last step, and after a run that was stopped or failed."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class Callbacks:
    """Calls the methods that each of several callbacks has, in their order. What those among `own` measure is done by
    this rank, for no other calls them."""

    def __init__(self, callbacks: Iterable[Any], own: Iterable[Any] = ()) -> None:
        self.callbacks = tuple(callbacks)
        self.own = {id(callback) for callback in own}

    def _call(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, hook, None)
            if method is not None:
                with distributed.alone() if id(callback) in self.own else contextlib.nullcontext():
                    method(*values)

    def start(self, state: State) -> None:
        self._call("on_start", state)

    def step(self, state: State) -> None:
        self._call("on_step", state)

    def log(self, state: State) -> None:
        """Let all callbacks fill a new line, `state.line`."""
        state.line = {}
        self._call("on_log", state, state.line)

    def checkpoint(self, state: State, path: Path) -> None:
        self._call("on_checkpoint", state, path)

    def end(self, state: State) -> None:
        self._call("on_end", state)


def check_callbacks(callbacks: Any) -> None:
    """Check that each is an object with a method that is called. Raises UserError naming the first that is not."""
    if not isinstance(callbacks, list | tuple):
        raise UserError(f"callbacks is a {type(callbacks).__name__}; give a list of objects, callbacks=[...].")
    for callback in callbacks:
        if isinstance(callback, type):
            raise UserError(f"The callback {callback.__name__} is a class; give an object, {callback.__name__}().")
        names = [name for name in dir(callback) if name.startswith("on_")]
        unknown = [name for name in names if name not in HOOKS]
        if unknown:
            raise UserError(
                f"The callback {type(callback).__name__} has {unknown[0]}, which is never called; "
                f"{did_you_mean(unknown[0], HOOKS)}"
            )
        if not names:
            raise UserError(f"The callback {type(callback).__name__} has none of {', '.join(HOOKS)}; give it one.")
