"""Train, evaluate and use Image World Models.

import iwm
world = iwm.load("RUN")
tokens = world.encode(images)
future = world.predict(tokens, world.action(brightness=0.3))

Every verb of the command line is a function too, its options are keywords (docs/python.md):

run = iwm.pretrain("demo", data=images, out="runs/mine", **{"optim.epochs": 3})
iwm.probe(run, data="photos", kind="knn").top1
"""

import importlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from iwm.actions.action_sets import import_set, register
    from iwm.actions.action_space import ActionSpace
    from iwm.actions.transformation import Transformation
    from iwm.config import Config
    from iwm.data.sources import open_images
    from iwm.evaluation.tasks.classifier import load_classifier
    from iwm.evaluation.tasks.embed import Embedding
    from iwm.evaluation.tasks.probe_kinds import FeatureProbe, register_probe
    from iwm.evaluation.tasks.segmenter import load_segmenter
    from iwm.exporting import ExportFormat, register_format
    from iwm.functions import pretrain
    from iwm.model.conditioning import Conditioning, register_conditioning
    from iwm.model.objectives import Objective, register_objective
    from iwm.model.world_model import ImageWorldModel, Tokens
    from iwm.reports.results import (
        DecoderResult,
        EfficiencyResult,
        ExportResult,
        FinetuneResult,
        ImagineResult,
        InferResult,
        LookResult,
        MultitaskResult,
        ProbeResult,
        Result,
        SearchResult,
        SegmentResult,
        SweepResult,
        TableResult,
        UndoResult,
        WorldResult,
    )
    from iwm.reports.results import read as read_result
    from iwm.reports.run import DoctorResult, Run
    from iwm.run_folder import load_model as load
    from iwm.runtime.errors import Interrupted, UserError
    from iwm.training.callbacks import Callback
    from iwm.training.optimisers import Optimiser, register_optimiser
    from iwm.training.trackers import Tracker, register_tracker
    from iwm.verbs import Verb
    from iwm.verbs import register as register_verb
R = TypeVar("R", covariant=True)


class Work(Protocol[R]):
    """A verb from Python: its options in their order or as keywords, nested ones with dots."""

    def __call__(self, *values: Any, **keywords: Any) -> R: ...


app: "Work[None]"
compare: "Work[TableResult]"
completion: "Work[str]"
decoder: "Work[DecoderResult]"
demo: "Work[Path]"
doctor: "Work[DoctorResult]"
efficiency: "Work[EfficiencyResult]"
embed: "Work[Embedding]"
export: "Work[ExportResult]"
finetune: "Work[FinetuneResult]"
imagine: "Work[ImagineResult]"
infer: "Work[InferResult]"
look: "Work[LookResult]"
multitask: "Work[MultitaskResult]"
predict: "Work[TableResult]"
probe: "Work[ProbeResult]"
push: "Work[dict[str, Any]]"
recipes: "Work[TableResult]"
report: "Work[Path]"
search: "Work[SearchResult]"
segment: "Work[SegmentResult]"
sweep: "Work[SweepResult]"
undo: "Work[UndoResult]"
world: "Work[WorldResult]"

_HOMES = {
    "ActionSpace": "actions.action_space",
    "Callback": "training.callbacks",
    "Conditioning": "model.conditioning",
    "Config": "config",
    "Embedding": "evaluation.tasks.embed",
    "ExportFormat": "exporting",
    "FeatureProbe": "evaluation.tasks.probe_kinds",
    "ImageWorldModel": "model.world_model",
    "Interrupted": "runtime.errors",
    "Objective": "model.objectives",
    "Optimiser": "training.optimisers",
    "Tokens": "model.world_model",
    "Tracker": "training.trackers",
    "Transformation": "actions.transformation",
    "UserError": "runtime.errors",
    "Verb": "verbs",
    "import_set": "actions.action_sets",
    "load": "run_folder:load_model",
    "open_images": "data.sources",
    "load_classifier": "evaluation.tasks.classifier",
    "load_segmenter": "evaluation.tasks.segmenter",
    "pretrain": "functions",
    "read_result": "reports.results:read",
    "Result": "reports.results",
    "Run": "reports.run",
    "register": "actions.action_sets",
    "register_verb": "verbs:register",
    "register_conditioning": "model.conditioning",
    "register_format": "exporting",
    "register_objective": "model.objectives",
    "register_probe": "evaluation.tasks.probe_kinds",
    "register_optimiser": "training.optimisers",
    "register_tracker": "training.trackers",
}
"""Where the public names live, "module" or "module:another name". All other verbs live in `iwm.verbs`."""

__all__ = [
    "ActionSpace",
    "Callback",
    "Conditioning",
    "Config",
    "Embedding",
    "ExportFormat",
    "FeatureProbe",
    "ImageWorldModel",
    "Interrupted",
    "Objective",
    "Optimiser",
    "Result",
    "Run",
    "Tokens",
    "Tracker",
    "Transformation",
    "UserError",
    "Verb",
    "app",
    "compare",
    "completion",
    "decoder",
    "demo",
    "doctor",
    "efficiency",
    "embed",
    "export",
    "finetune",
    "imagine",
    "import_set",
    "infer",
    "load",
    "load_classifier",
    "load_segmenter",
    "look",
    "multitask",
    "open_images",
    "predict",
    "pretrain",
    "probe",
    "push",
    "read_result",
    "recipes",
    "register",
    "register_conditioning",
    "register_format",
    "register_objective",
    "register_optimiser",
    "register_probe",
    "register_tracker",
    "register_verb",
    "report",
    "search",
    "segment",
    "sweep",
    "undo",
    "world",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import iwm` is instant."""
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(f"iwm.{module}"), attribute or name)
    if not name.startswith("_"):
        verbs = importlib.import_module("iwm.verbs")
        if name in verbs.names():
            return importlib.import_module("iwm.functions").verb_function(name)
    raise AttributeError(f"module 'iwm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
