"""Write a RUN in a format of others: for timm, ONNX, torch.export, the hub, or as iwm.load reads it."""

from dataclasses import dataclass
from typing import Annotated

from iwm.runtime.bounds import AtLeast
from iwm.verbs.shared import OneRun, Published


@dataclass(frozen=True, kw_only=True)
class Export(Published, OneRun):
    format: str
    """safetensors: what iwm.load reads; timm: the encoder for timm.create_model; onnx and torch: graphs of the parts;
    hub: a folder ready to push."""
    out: str
    """Folder that the files are written into, new or of an earlier export."""
    part: tuple[str, ...] = ()
    """encoder, predictor, decoder, classifier, segmenter: what of the run becomes a graph; by default all it has (onnx,
    torch)."""
    size: Annotated[int, AtLeast(0)] = 0
    """Side of the images in px, which a graph holds fixed; 0: that of the training (onnx, torch)."""
    student: bool = False
    """Take the student instead of the EMA encoder (timm, onnx, torch)."""


OPTIONS = Export
WORK = "iwm.exporting.export:export"
EXAMPLE = "iwm export runs/mine --format timm --out exported/timm"
