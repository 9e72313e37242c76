"""ONNX and torch.export: the parts of a run as graphs of any batch, each compared with the model it came from."""

import contextlib
import io
import json
import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iwm.exporting.format import ExportFormat, Request
from iwm.exporting.graph_parts import Part, parts_of
from iwm.runtime.errors import UserError

BATCHES = (1, 2, 5)
"""Images at once with which a graph is compared; it is traced with TRACED."""
TRACED = 3
TOLERANCE = 1e-3
"""Largest difference allowed, as a share of the largest value."""

Run = Callable[[dict[str, Tensor]], list[Tensor]]


class Graphs(ExportFormat):
    """A file for every part; any number of images at once, one size of images."""

    takes = ("part", "size", "student")
    ending: str

    def write(self, request: Request, folder: Path) -> dict[str, Any]:
        parts = {}
        for part in parts_of(request):
            path = folder / f"{part.name}{self.ending}"
            with _quiet():
                self.save(part, path)
                parts[part.name] = compare(part, self.reader(path), path.name) | dict(part.notes)
        return {"parts": parts, "largest_difference": max(part["largest_difference"] for part in parts.values())}

    def first(self, out: Path, result: dict[str, Any]) -> tuple[str, list[str]]:
        """The file of the first part, and the names of its inputs, for a line that shows the use."""
        name, part = next(iter(result["parts"].items()))
        return str(out / f"{name}{self.ending}"), list(part["inputs"])

    @abstractmethod
    def save(self, part: Part, path: Path) -> None:
        """Trace the part and write its graph."""

    @abstractmethod
    def reader(self, path: Path) -> Run:
        """The graph as it is read from the file."""


class TorchPrograms(Graphs):
    """Programs of torch.export, which need PyTorch and nothing of ours."""

    name = "torch"
    ending = ".pt2"

    def save(self, part: Part, path: Path) -> None:
        content = io.BytesIO()  # torch's own writer of files ends the process where a disk is full
        torch.export.save(program_of(part), content)
        path.write_bytes(content.getbuffer())

    def reader(self, path: Path) -> Run:
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
        return lambda inputs: list(module(**inputs))

    def usage(self, out: Path, result: dict[str, Any]) -> list[str]:
        path, inputs = self.first(out, result)
        return [f"In Python: torch.export.load({path!r}).module()({', '.join(f'{name}={name}' for name in inputs)})"]


class OnnxGraphs(Graphs):
    """ONNX graphs by `torch.onnx.export(dynamo=True)`, compared with onnxruntime."""

    name = "onnx"
    ending = ".onnx"
    needs = ("onnx", "onnxscript", "onnxruntime")

    def save(self, part: Part, path: Path) -> None:
        inputs = part.examples(TRACED)
        program = torch.onnx.export(
            part.module.eval(),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=_free_batch(inputs),
            input_names=list(inputs),
            output_names=list(part.outputs),
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["iwm"] = json.dumps(part.notes)
        program.save(path)

    def reader(self, path: Path) -> Run:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(inputs: dict[str, Tensor]) -> list[Tensor]:
            outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            return [torch.from_numpy(output) for output in outputs]

        return run

    def usage(self, out: Path, result: dict[str, Any]) -> list[str]:
        path, inputs = self.first(out, result)
        values = ", ".join(f"{name!r}: {name}" for name in inputs)
        return [f"In Python: onnxruntime.InferenceSession({path!r}).run(None, {{{values}}})"]


def program_of(part: Part) -> torch.export.ExportedProgram:
    """The part as a program of torch.export."""
    inputs = part.examples(TRACED)
    return torch.export.export(part.module.eval(), (), kwargs=inputs, dynamic_shapes=_free_batch(inputs))


def _free_batch(inputs: dict[str, Tensor]) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in inputs}


def compare(part: Part, run: Run, file: str) -> dict[str, Any]:
    """How far the graph of a file is from the model, at every batch. Raises UserError where it is another function."""
    differences: dict[str, float] = {}
    shapes: dict[str, dict[str, list[Any]]] = {}
    largest = 0.0
    for batch in BATCHES:
        inputs = part.examples(batch)
        expected, outputs = part.reference(**inputs), run(inputs)
        pairs = list(zip(outputs, expected, strict=True))
        differences[str(batch)] = max(float((one - other).abs().max()) for one, other in pairs)
        largest = max(largest, *(float(other.abs().max()) for _, other in pairs))
        tensors = {"inputs": inputs, "outputs": dict(zip(part.outputs, outputs, strict=True))}
        shapes = {kind: {name: ["b", *value.shape[1:]] for name, value in tensors[kind].items()} for kind in tensors}
    difference = max(differences.values())
    if not difference <= TOLERANCE * largest:  # also for NaN
        raise UserError(
            f"{file} computes something else than the model: it is {difference:.2g} away, of values up to "
            f"{largest:.2g}, and is not kept. Try another version of torch or onnxscript."
        )
    return {**shapes, "differences": differences, "largest_difference": difference, "largest_value": largest}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tracers' remarks on their own working from the console; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
