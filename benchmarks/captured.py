"""Loss and gradients of a step as one CUDA graph, to measure what that saves. No part of the package.

What the host prepares (crops, views, masks) is copied into tensors that stay where they are; a graph of forward and
backward pass is captured for every shape of them, so one for steps of parts and one for whole images. Clipping,
optimiser, EMA and target statistics follow as always. Not for several ranks, accumulation, activation checkpoints, or
modules that keep count of their calls (BatchNorm of joint embeddings): a graph repeats kernels, not Python.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from iwm.actions.views import Views
from iwm.model.masks import Masks
from iwm.training.step import Part, Training

Run = Callable[[], list[Tensor]]
Capture = Callable[[Run], tuple[list[Tensor], Callable[[], object]]]
"""From what is to be repeated: its results, which stay where they are, and what computes them anew."""
WARM_UP = 3
"""Runs before the capture: cuDNN, cuBLAS and compiled blocks choose and allocate in the first ones."""


def cuda_graph(run: Run) -> tuple[list[Tensor], Callable[[], object]]:
    """A CUDA graph of what `run` launches; its results lie in the graph's own memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads pin pictures meanwhile, which a capture that watches all of them would take for an error.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = run()
    return results, graph.replay


@dataclass
class Recording:
    """One graph: where its inputs are written, what it computes, and what computes it again."""

    inputs: list[Tensor]
    results: list[Tensor]
    replay: Callable[[], object]


@dataclass
class CapturedTraining(Training):
    """Training whose steps replay graphs."""

    capture: Capture = cuda_graph
    recordings: dict[Any, Recording] = field(default_factory=dict)

    def loss(self, part: Part, indices: np.ndarray, step: int) -> Tensor:
        """The loss, of which the gradients are there already: `backward` of what is returned reaches nothing."""
        assert self.session.ranks == 1
        assert self.settings.optim.accumulate == 1
        views, masks = self.views_and_masks(part, indices, step)
        views = cast(Views, views)
        inputs = [views.source, views.target, views.action, masks.context, masks.predicted]
        key = tuple(one.shape for one in inputs)
        if key not in self.recordings:
            self.recordings[key] = self._record(views, inputs)
        recording = self.recordings[key]
        for kept, new in zip(recording.inputs, inputs, strict=True):
            kept.copy_(new)
        recording.replay()
        loss, pending, *gradients = recording.results
        for parameter, gradient in zip(self._moved(), gradients, strict=True):
            parameter.grad = gradient
        if self.model.target_norm.kind != "token":
            self.model.target_norm.pending = pending  # what Python kept of a forward pass, a graph does not
        return loss.clone().requires_grad_()

    def _moved(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters if parameter.requires_grad]

    def _record(self, views: Views, inputs: list[Tensor]) -> Recording:
        kept = [one.clone() for one in inputs]
        static = replace(views, source=kept[0], target=kept[1], action=kept[2])
        masks = Masks(kept[3], kept[4])

        def run() -> list[Tensor]:
            for parameter in self.parameters:
                parameter.grad = None  # so that the pass writes gradients and adds nothing
            self.model.target_norm.pending = None
            with self.session.autocast():
                loss = self.model(static, masks).loss
            loss.backward()
            pending = self.model.target_norm.pending
            gradients = [cast(Tensor, parameter.grad) for parameter in self._moved()]
            return [loss.detach(), loss.detach() if pending is None else pending, *gradients]

        return Recording(kept, *self.capture(run))
