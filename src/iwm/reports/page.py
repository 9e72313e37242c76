"""The page of a run: what was measured, always beside its controls, and what that means.

`write` puts everything a run folder holds into RUN/report.html, one file that needs nothing else: a verdict in words,
curves, gallery, strips, all results, configuration. It reads files only, never a model or data. This module prepares
what the page says; how the page looks is in `templates/`.
"""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iwm.evaluation.tasks.multitask import AVERAGES
from iwm.evaluation.world.infer import answers_of
from iwm.model.objectives import OBJECTIVES, PatchPrediction
from iwm.reports import figures
from iwm.reports.finding import Finding, Result, data_of, note_of, number, require_measured, verb_of
from iwm.reports.verdict import VERBS, headline, judge_results, judge_training
from iwm.run_folder import EARLIER, RunFolder, is_remote, settings_of_weights
from iwm.runtime import fields, files
from iwm.runtime.console import console, in_words
from iwm.runtime.drawing import png_of
from iwm.runtime.errors import UserError

LONGEST = 3000
"""Characters of a nested value shown on the page; longer ones are in their JSON file."""
ORIGIN = ("command", "date", "seed", "hardware", "settings", "run", "run_weights", "other_encoder_weights", "weights")
"""How a result was made, as every file records it."""
CAPTIONS = {
    "world": "told the action, the model imagines the source changed by it; of a bank of changed versions it shows the "
    "nearest to what it imagined, then the truth and its rank; 1 is right.",
    "decoder": "the imagined picture is the model's prediction, shown by the pixel decoder; beside it the truth after "
    "the same decoder, whose blur is the decoder's and not the model's.",
    "imagine": "one action, or one parameter over its range; the nearest of the bank to what was imagined, framed "
    "green and solid where it is the truth.",
    "look": "tokens of source, prediction and truth as colours of one principal basis; bright patches are "
    "those a change moves, and those the prediction misses, on one scale a row.",
    "infer": "what the model knows of a change: the action between two images, found by search through the predictor, "
    "beside what needs no world model. Where there are pixels, the search among pictures is the better tool.",
    "undo": "what a probe of clean images reads of corrupted ones, before and after the predictor has undone them.",
}
"""Verbs whose pictures need the width of the page, with what they show."""

STAGES = "Held-out photos, never trained on: what the model imagined before, half-way through and after its training."

Rows = list[list[str]]


DOCTYPE = b"<!DOCTYPE html>\n"
MARK = DOCTYPE + b"<!-- iwm report -->\n"
"""What a page begins with, so that it takes the place of none but an earlier one."""
TITLE = b" - image world model</title>"
"""What stands in the head of pages of versions that wrote no mark."""


def write(run: str | Path, out: str | Path = "", results: str = "") -> Path:
    """Write RUN/report.html, or the file `out`, from the files of the run; returns its path.

    Of a RUN that was trained elsewhere (`demo`, hf-hub:user/name, or `results`, the folder of its results) there are
    results only. What is missing is left out with a sentence that says which command would fill it. Raises UserError
    when `run` is no run folder, and when the page cannot be written."""
    run = fields.as_text(run)
    elsewhere, folder = bool(results) or is_remote(run), RunFolder.of(run, results)
    require_measured(run, folder)
    folder.require(*(("eval",) if elsewhere else ("config", "metrics")))
    path = Path(out).expanduser() if out else folder.report
    mark = b"" if _is_older_page(path) else MARK
    files.require_file(path, "The page", "give --out another FILE.html.", mark)
    files.write_text(path, render("report.html.jinja", _content(folder, run if elsewhere else "")))
    return path


def _is_older_page(path: Path) -> bool:
    """Whether a file is the page of a run from before pages had a mark."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(DOCTYPE) and TITLE in head


# ---- what every page is made of ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture inside a page."""

    alt: str
    address: str
    """The PNG as a data address; empty when the file cannot be read."""
    name: str = ""
    width: str = ""
    """wide, medium, or as wide as the page leaves room for."""
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """A finding in words, with its sign and its bars."""

    title: str
    sentence: str
    tone: str
    mark: str
    bars: list[tuple[str, str, str]]
    """(name, width, value), ours first."""


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of `templates/` filled with `content`; text is escaped, and a name without a value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("iwm.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(content)


def embed(png: bytes, alt: str, width: str, caption: str = "") -> Picture:
    """A PNG as a picture of the page."""
    return Picture(alt, "data:image/png;base64," + base64.b64encode(png).decode(), width=width, caption=caption)


def card(finding: Finding) -> Card:
    """A finding as a card; the longest bar fills the width."""
    tone, mark = {True: ("good", "✓"), False: ("bad", "✗"), None: ("", "?")}[finding.good]
    longest = max((value for _, value in finding.bars), default=0) or 1
    bars = [(name, f"{max(0.0, 100 * value / longest):.1f}%", f"{value:.3f}") for name, value in finding.bars]
    return Card(finding.title, finding.sentence, tone, mark, bars)


def _read_picture(path: Path, alt: str, width: str = "", caption: str = "") -> Picture | None:
    """A PNG file as a picture, without an address when it cannot be read; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return Picture(alt, "", path.name)
    return embed(content, alt, width, caption)


# ---- the page of a run ---------------------------------------------------------------------------------------------


def _content(folder: RunFolder, elsewhere: str) -> dict[str, Any]:
    """Everything that `report.html.jinja` needs; `elsewhere` is the RUN of weights that were trained elsewhere."""
    order = {verb: place for place, verb in enumerate(VERBS)}
    results = sorted(folder.results(), key=lambda result: order.get(verb_of(result), len(order)))
    metrics = _read_metrics(folder)
    return {
        "name": elsewhere or folder.name,
        "run": shlex.quote(elsewhere or str(folder.path)),
        "elsewhere": elsewhere,
        "facts": _facts(settings_of_weights(elsewhere) if elsewhere else folder.settings_unchecked(), metrics, results),
        **_verdict(None if elsewhere else judge_training(metrics, folder.objective_kind()), results),
        "lacks": _lacks(folder, metrics, results),
        "curves": _curves(metrics),
        "gallery": _read_picture(
            folder.gallery,
            "Gallery of crops, sources, masks and targets",
            "wide",
            "What one step of training works on. The action leads from the source's colours to the target's.",
        ),
        "stages": _read_picture(folder.stages, "Imagined while it was trained", "wide", STAGES),
        "imagination": _exhibits(folder, results, ("world", "imagine", "decoder")),
        "inspection": [*_exhibits(folder, results, ("look", "infer", "undo")), *_nearest(folder, results)],
        "multitask": _multitask(folder, results),
        "segmentation": _segmentation(folder, results),
        "results": [_result(folder, result) for result in results],
        "configuration": _configuration(folder),
    }


def _read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The metrics, or none when the file is missing or damaged (which is said on the console)."""
    try:
        return folder.metric_lines()
    except UserError as damage:
        console.print(f"[yellow]{damage} It is left out of the report.")
        return []


def _facts(settings: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> list[str]:
    """What was trained, on what, where and when, in a line or two."""
    facts = _settings_facts(settings)
    if metrics:
        last = metrics[-1]
        speeds = sorted(rate for line in metrics if (rate := number(line, "images_per_second")) is not None)
        steps, epochs = (number(last, key) or 0 for key in ("step", "epoch"))
        facts.append(f"{steps:,.0f} steps, {epochs:.4g} epochs")
        if speeds:
            facts.append(f"{speeds[len(speeds) // 2]:,.0f} images a second in {last.get('precision', '?')}")
    newest = max(results, key=lambda result: str(result.get("date") or ""), default={})
    machine = newest.get("hardware")
    if isinstance(machine, dict):
        gpu = "" if machine.get("gpu") in (None, "none") else f", {machine['gpu']}"
        facts.append(f"evaluated on {machine.get('processor', '?')}, {machine.get('cores', '?')} cores{gpu}")
    if newest.get("date"):
        facts.append(f"last result {str(newest['date']).replace('T', ' ').replace('+00:00', ' UTC')}")
    return [*facts, f"page written {datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"]


def _settings_facts(settings: Mapping[str, Any]) -> list[str]:
    """What was trained, by its settings; a setting that cannot be read is a question mark."""
    if not settings:
        return []

    values = fields.flatten(settings)

    def of(name: str) -> Any:
        return values.get(name, "?")

    return [
        f"recipe {of('recipe')}",
        f"images {of('data.source')} at {of('data.image_size')} px",
        f"encoder {of('encoder.depth')} x {of('encoder.width')}, patches of {of('encoder.patch_size')} px",
        OBJECTIVES.get(str(of("objective.kind")), PatchPrediction).summary(values),
    ]


def _verdict(training: Finding | None, results: Sequence[Result]) -> dict[str, Any]:
    """The headline with its tone, and a card for each finding."""
    judged = judge_results(results)
    findings = [training, *judged] if training else judged
    signs = [finding.good for finding in findings]
    return {
        "tone": "bad" if False in signs else "good" if True in signs and judged else "",
        "headline": headline(training, judged),
        "findings": [card(finding) for finding in findings],
    }


def _lacks(folder: RunFolder, metrics: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> dict[str, bool]:
    """Which measurements a verdict needs and the run does not have."""
    verbs = {verb_of(result) for result in results}
    predicts = OBJECTIVES.get(folder.objective_kind(), PatchPrediction).predicts
    has_twin = any("frozen_random_twin_mrr" in result for result in results)
    return {
        "metrics": not metrics,
        "world": "world" not in verbs,
        "twin": "world" in verbs and not has_twin,
        "decoder": predicts and "decoder" not in verbs,
        "probe": "probe" not in verbs,
        "finetune": "finetune" not in verbs,
    }


def _curves(metrics: Sequence[dict[str, Any]]) -> Picture | None:
    """The training curves; None when the metrics hold none."""
    try:
        figure = figures.curves(metrics)
    except UserError:
        return None
    caption = (
        "A falling loss alone can be a collapse: it should fall below what knowing the position explains while RankMe "
        "and the variance between images stay up. Action sensitivity near 0 is a predictor that ignores the action; a "
        "photometric share near 0 is targets that do not change with the colours."
    )
    return embed(png_of(figure), "Training curves", "wide", caption)


def _exhibits(folder: RunFolder, results: Sequence[Result], verbs: Sequence[str]) -> list[dict[str, Any]]:
    """The pictures of these verbs, with the tables that belong to them."""
    exhibits = (_exhibit(folder, result) for verb in verbs for result in results if verb_of(result) == verb)
    return [exhibit for exhibit in exhibits if exhibit]


def _exhibit(folder: RunFolder, result: Result) -> dict[str, Any] | None:
    """The pictures of a result, and what it holds by name and column as tables; None without a picture."""
    path, verb, data = folder.picture_of(result), verb_of(result), data_of(result)
    width = "wide" if verb in ("world", "imagine", "decoder", "look") else "medium"
    alt = f"{'Retrieval strips' if verb == 'world' else verb} on {data}"
    picture = _read_picture(path, alt, width, f"{data}{note_of(result)}: {CAPTIONS[verb]}")
    if picture is None:
        return None
    average = path.with_name(f"{path.stem}-averaged.png")
    pictures = [picture, _read_picture(average, f"{verb}, averaged over actions", "medium")]
    tables = [_rows(value) for value in result.values()] if verb in ("look", "undo") else []
    tables += [_rows({name: _errors(row) for name, row in answers_of(result).items()})] if verb == "infer" else []
    return {"pictures": [one for one in pictures if one], "tables": [rows for rows in tables if rows]}


def _errors(answer: Any) -> dict[str, Any]:
    """The mean error of who answered `iwm infer`, then that of every component; of a damaged file none."""
    content = answer if isinstance(answer, dict) else {}
    components = content.get("components")
    return {"mean": content.get("error"), **(components if isinstance(components, dict) else {})}


def _nearest(folder: RunFolder, results: Sequence[Result]) -> list[dict[str, Any]]:
    """What instance probes have found nearest to changed crops."""
    pictures = []
    for result in results:
        path = folder.picture_of(result)
        caption = f"{data_of(result)}{note_of(result)}: an image, a changed crop of it, and the nearest in the gallery "
        caption += "to the encoder; the image itself is framed green."
        path = path.with_name(f"{path.stem}-nearest.png")
        pictures.append(_read_picture(path, f"Nearest images on {data_of(result)}", "medium", caption))
    return [{"pictures": [picture], "tables": []} for picture in pictures if picture]


def _rows(value: Any) -> Rows:
    """Rows of equal columns as a table with the columns' names first; empty for any other value."""
    has_names = isinstance(value, dict)
    items = value.items() if has_names else enumerate(value) if isinstance(value, list) else ()
    rows = [(str(name), row) for name, row in items if isinstance(row, dict)]
    if not rows or any(row.keys() != rows[0][1].keys() for _, row in rows):
        return []
    table = [["", *(key.replace("_", " ") for key in rows[0][1])]]
    table += [[name, *(in_words(cell) for cell in row.values())] for name, row in rows]
    return table if has_names else [line[1:] for line in table]


def _multitask(folder: RunFolder, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every task of one predictor beside the predictor trained on that task alone; nothing without such a result."""
    parts = []
    for result in results:
        tasks = result.get("tasks")
        if verb_of(result) != "multitask" or not isinstance(tasks, dict):
            continue
        rows: Rows = [["task", "top-1", "predictor of its own", "as many updates", "chance", "classes"]]
        for name, content in tasks.items():
            task = content if isinstance(content, dict) else {}
            values = [in_words(task.get(key)) for key in AVERAGES]
            rows.append([str(name), *values, str(len(task.get("classes") or ()))])
        picture = _read_picture(folder.picture_of(result), f"Accuracy of every task on {data_of(result)}")
        parts.append({"file": result["file"] + note_of(result), "rows": rows, "picture": picture})
    return parts


def _segmentation(folder: RunFolder, results: Sequence[Result]) -> list[Picture]:
    """Segmented images, where there are any: not every run has a use for them."""
    pictures = []
    for result in results:
        if verb_of(result) != "segment":
            continue
        caption = (
            f"{result['file']}{note_of(result)}: mIoU {in_words(number(result, 'miou'))}; nothing pretrained "
            f"{in_words(number(result, 'random_encoder_miou'))}, the majority class everywhere "
            f"{in_words(number(result, 'majority_miou'))}."
        )
        alt = f"Segmented images of {data_of(result)}"
        pictures.append(_read_picture(folder.picture_of(result), alt, "wide", caption))
    return [picture for picture in pictures if picture]


def _result(folder: RunFolder, result: Result) -> dict[str, Any]:
    """One result: its numbers, its picture, and how it was made."""
    own = {key: value for key, value in result.items() if key not in (*ORIGIN, EARLIER, "file", "fingerprint")}
    parts = {key: value for key, value in own.items() if isinstance(value, dict | list)}
    rows: Rows = [[key, in_words(value)] for key, value in own.items() if key not in parts]
    points = result.get("points")
    for point in points if isinstance(points, list) else ():
        if isinstance(point, dict):
            top1, count = in_words(point.get("top1")), in_words(point.get("trainable_parameters"))
            rows.append([str(point.get("what")), f"{top1} with {count} parameters"])
    shows_elsewhere = verb_of(result) in (*CAPTIONS, "multitask", "segment")
    details = {key: result[key] for key in ORIGIN if key in result} | parts
    return {
        "file": result["file"] + note_of(result),
        "rows": rows,
        "picture": None if shows_elsewhere else _read_picture(folder.picture_of(result), str(result["file"])),
        "details": [(key, _text(value, result["file"])) for key, value in details.items()],
    }


def _text(value: Any, file: str) -> str:
    """A value as text, cut short when it is long."""
    text = value if isinstance(value, str) else json.dumps(value, indent=None if isinstance(value, list) else 1)
    return text if len(text) <= LONGEST else f"{text[:200]} ... (the whole is in eval/{file}.json)"


def _configuration(folder: RunFolder) -> str | None:
    try:
        return folder.config.read_text()
    except (OSError, ValueError):
        return None
