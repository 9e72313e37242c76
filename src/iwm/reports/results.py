"""What Python callers get back: results as frozen dataclasses.

A result is a mapping of exactly what its JSON file holds; its main numbers are attributes too. It prints as the table
of the command line, draws itself, and shows as HTML in a notebook.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

from iwm.evaluation.ritual import Content
from iwm.reports.tables import MOST_ROWS, Rows, figure_of, html_of, picture_html, tables_of, text_of
from iwm.reports.verdict import judge_result
from iwm.run_folder import RunFolder, read_result
from iwm.runtime.console import in_words, text_printed
from iwm.runtime.errors import UserError

SWEEP_COLUMNS = ("cell", "mrr", "linear", "attentive", "predictor_finetuning", "healthy")
"""What a notebook shows of a sweep's runs."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(Mapping[str, Any]):
    """What a verb measured, a mapping of what its JSON file holds."""

    path: Path
    """The JSON file; pictures lie beside it under the same name."""
    content: Mapping[str, Any] = field(repr=False)
    live: Content | None = field(default=None, repr=False)
    """What the verb handed over; prints the command line's own table."""
    verb: ClassVar[str] = ""

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> "Result":
        """The result that a file holds. Raises UserError when one of the class's numbers is missing."""
        values = {name: value for name, value in content.items() if name != "path"}
        names = [one.name for one in dataclasses.fields(cls) if one.name not in ("path", "content", "live")]
        missing = [name for name in names if name not in values and not _optional(cls, name)]
        if missing:
            raise UserError(f"{path} has no {missing[0]}; measure again.")
        live = content if isinstance(content, Content) else None
        chosen = {name: Path(values[name]) if name == "weights" else values[name] for name in names if name in values}
        return cls(path=path, content=values, live=live, **chosen)

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def pictures(self) -> dict[str, Path]:
        """The pictures of the result by their ending: "" is RESULT.png."""
        names = (f"{self.path.stem}.png", f"{self.path.stem}-*.png")
        paths = sorted(path for name in names for path in self.path.parent.glob(name))
        others = [path for path in self.path.parent.glob("*.json") if path.stem.startswith(f"{self.path.stem}-")]
        own = [path for path in paths if not any(path.stem.startswith(other.stem) for other in others)]
        return {path.stem.removeprefix(self.path.stem).removeprefix("-"): path for path in own}

    def figure(self, ending: str = "") -> Figure:
        """The result's picture as a matplotlib figure. Raises UserError when it has none of that ending."""
        if ending not in self.pictures:
            known = ", ".join(repr(one) for one in self.pictures) or "none"
            raise UserError(f"{self.path.stem} has no picture '{ending}' (there is {known}).")
        return figure_of(self.pictures[ending])

    def verdict(self) -> str:
        """What it says beside its controls, in words; of a finetuning, beside the others of its folder. Empty for a
        verb whose results are not judged."""
        folder = RunFolder(self.path.parent.parent)
        findings = judge_result(self.path.stem, folder.results()) if self.path.parent == folder.eval else []
        return "\n".join(finding.sentence for finding in findings)

    def __str__(self) -> str:
        if self.live is not None:
            return text_printed(self.live.print)
        return text_of(tables_of(self.path.stem, self))

    def __repr__(self) -> str:
        names = [one.name for one in dataclasses.fields(self) if one.name not in ("path", "content", "live")]
        values = {name: getattr(self, name) for name in names}
        numbers = [
            f"{name}={in_words(value)}" for name, value in values.items() if not isinstance(value, Mapping | list)
        ]
        return f"{type(self).__name__}({', '.join([*numbers, f'path={str(self.path)!r}'])})"

    def _repr_html_(self) -> str:
        parts = [html_of(rows, title) for title, rows in tables_of(self.path.stem, self)]
        return "".join([*parts, *(picture_html(path) for path in self.pictures.values())])


def _optional(cls: type, name: str) -> bool:
    (one,) = (one for one in dataclasses.fields(cls) if one.name == name)
    return one.default is not dataclasses.MISSING


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WorldResult(Result):
    """What `iwm.world` measured."""

    verb: ClassVar[str] = "world"
    data: str
    mrr: float
    mrr_standard_error: float
    mrr_chance: float
    mrr_shuffled: float
    mrr_null: float
    hits_at_1: float
    hits_at_5: float
    hits_at_10: float
    action_sensitivity: float
    inferred_action_error: float
    mrr_calibrated: float | None = None
    """Of predictions with their whole change; None of older results, like the three below."""
    mrr_common: float | None = None
    """In one space for all models, the picture's 8 x 8 colours."""
    slope: float | None = None
    action_correlation: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProbeResult(Result):
    """What `iwm.probe` measured; the baselines are None where they were left out."""

    verb: ClassVar[str] = "probe"
    data: str
    kind: str
    top1: float
    chance: float
    majority_top1: float | None = None
    top5: float | None = None
    balanced_top1: float | None = None
    random_encoder_top1: float | None = None
    raw_pixels_top1: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FinetuneResult(Result):
    """What `iwm.finetune` measured; `iwm.load_classifier(result.weights)` is the classifier."""

    verb: ClassVar[str] = "finetune"
    data: str
    top1: float
    top5: float
    trainable_parameters: int
    flops_per_image: int
    train_images_per_second: float | None = None
    weights: Path


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EfficiencyResult(Result):
    """What `iwm.efficiency` measured: a point for every way of finetuning."""

    verb: ClassVar[str] = "efficiency"
    data: str
    points: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MultitaskResult(Result):
    """What `iwm.multitask` measured, for every task beside a predictor of its own."""

    verb: ClassVar[str] = "multitask"
    data: str
    tasks: Mapping[str, Mapping[str, Any]]
    average_top1: float
    average_single_task_top1: float
    weights: Path


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SegmentResult(Result):
    """What `iwm.segment` measured."""

    verb: ClassVar[str] = "segment"
    data: str
    miou: float
    pixel_accuracy: float
    per_class_iou: Sequence[float | None]
    majority_miou: float
    weights: Path


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImagineResult(Result):
    """What `iwm.imagine` showed: the truth's rank in the bank, 1 is right; of several changes no action of all."""

    verb: ClassVar[str] = "imagine"
    data: str
    action: str | None = None
    rank: float
    bank: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InferResult(Result):
    """What `iwm.infer` says: of two images the action in raw units and in words, of a source the error."""

    verb: ClassVar[str] = "infer"
    data: str
    action: Mapping[str, float] | None = None
    words: str | None = None
    residual: float | None = None
    inferred_action_error: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LookResult(Result):
    """What `iwm.look` measured."""

    verb: ClassVar[str] = "look"
    data: str
    change_explained: Mapping[str, Any]
    composition: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class UndoResult(Result):
    """What `iwm.undo` measured."""

    verb: ClassVar[str] = "undo"
    data: str
    clean_top1: float
    corruptions: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DecoderResult(Result):
    """What `iwm.decoder` measured: PSNR in dB of decoded truth, prediction, and prediction of no change."""

    verb: ClassVar[str] = "decoder"
    data: str
    head: str
    psnr_truth: float
    psnr_prediction: float
    psnr_null: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ExportResult(Result):
    """What `iwm.export` wrote: files with their bytes, and how far the graphs are from the model (None: no graphs)."""

    verb: ClassVar[str] = "export"
    format: str
    files: Mapping[str, int]
    largest_difference: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SearchResult(Result):
    """What `iwm.search` found: of every image its "path", "label" and "score", the most similar first."""

    verb: ClassVar[str] = "search"
    data: str
    query: str
    searched: int
    nearest: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SweepResult(Result):
    """What `iwm.sweep` collected; `path` is DIR/sweep.json, the page lies beside it."""

    verb: ClassVar[str] = "sweep"
    runs: Sequence[Mapping[str, Any]]

    def _repr_html_(self) -> str:
        columns = [name for name in SWEEP_COLUMNS if any(run.get(name) is not None for run in self.runs)]
        rows = [[run.get(name) for name in columns] for run in self.runs]
        return html_of([columns, *rows], str(self.path.parent)) + "".join(map(picture_html, self.pictures.values()))

    @property
    def pictures(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted(self.path.parent.glob("*.png"))}


KINDS: dict[str, type[Result]] = {
    kind.verb: kind
    for kind in (
        *(WorldResult, ProbeResult, FinetuneResult, EfficiencyResult, MultitaskResult, SegmentResult),
        *(ImagineResult, InferResult, LookResult, UndoResult, DecoderResult, ExportResult, SearchResult, SweepResult),
    )
}
"""The class of each verb's result."""


def read(path: str | Path) -> Result:
    """A result that was written before, RUN/eval/VERB-....json. Raises UserError when the file holds none."""
    path = Path(path).expanduser()
    content = read_result(path)
    if "fingerprint" not in content:
        raise UserError(f"{path} is no result; give a file RUN/eval/VERB-....json.")
    return KINDS.get(path.stem.split("-")[0], Result).of(content, path)


# ---- what is no single measurement ---------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class TableResult(Sequence[Mapping[str, Any]]):
    """Lines of a table, each a mapping of the same columns."""

    title: str
    rows: tuple[Mapping[str, Any], ...]
    path: Path | None = None
    """The file they were written to."""

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def _table(self) -> Rows:
        rows = [_unfolded(row) for row in self.rows]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return [columns, *([row.get(name) for name in columns] for row in rows)]

    def __str__(self) -> str:
        return text_of([(self.title, self._table())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self._table()[: MOST_ROWS + 1], self.title)


def _unfolded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a table with a column for every entry of a mapping in it."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        cells |= value if isinstance(value, Mapping) else {name: ", ".join(value) if isinstance(value, list) else value}
    return cells
