"""The page of a run: what was measured, always beside its controls, and what that means.

`write` puts everything a run folder holds into RUN/report.html, one file that needs nothing else: a verdict in words,
curves, gallery, strips, all results, configuration. It reads files only, never a model or data.
"""

import base64
import html
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from iwm import config, run_folder
from iwm.reports import figures
from iwm.reports.verdict import (
    VERBS,
    Finding,
    Result,
    data_of,
    headline,
    judge_results,
    judge_training,
    number,
    verb_of,
)
from iwm.run_folder import read_metrics
from iwm.runtime import drawing, files
from iwm.runtime.console import console, in_words
from iwm.runtime.errors import UserError

esc = html.escape

STYLE = """
:root{color-scheme:light dark;--ink:#1d2327;--soft:#5b6670;--line:#dfe3e6;--card:#f6f7f8;--page:#fff;
--good:#00795a;--bad:#b84a00;--ours:#0072b2;--other:#a9b1b8}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#a3adb5;--line:#343b41;--card:#1d2226;--page:#14181b;
--good:#35c69b;--bad:#f08a4b;--ours:#4ba9e0;--other:#66707a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.6rem 0 .5rem}
h3{font-size:1rem;margin:0 0 .4rem}p{margin:.4rem 0 .8rem;max-width:46rem}
.soft,figcaption,.facts{color:var(--soft);font-size:.9rem}.facts{max-width:none}
.verdict{border-left:.35rem solid var(--other);background:var(--card);padding:1rem 1.2rem;margin:1.2rem 0;
border-radius:.3rem}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.verdict p.lead{font-size:1.15rem;font-weight:600;margin:0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1rem}
.card{background:var(--card);border-radius:.4rem;padding:1rem 1.1rem}.card p{margin:.2rem 0 .7rem;font-size:.93rem}
.mark{font-weight:700}.good .mark{color:var(--good)}.bad .mark{color:var(--bad)}
.bar{display:grid;grid-template-columns:8.6rem 1fr 3.2rem;gap:.6rem;align-items:center;font-size:.86rem;line-height:1.7}
.bar i{display:block;height:.7rem;border-radius:.15rem;background:var(--other);min-width:1px}
.bar.ours i{background:var(--ours)}
.bar.ours{font-weight:600}.bar b{font-weight:inherit;text-align:right;font-variant-numeric:tabular-nums}
figure{margin:.6rem 0 1rem}.scroll{overflow-x:auto}
figure img{display:block;width:100%;background:#fff;border-radius:.4rem;padding:.4rem}
.wide img{min-width:42rem}.medium img{max-width:44rem;min-width:26rem}
.result{border-top:1px solid var(--line);padding:1.1rem 0}.result>.both{display:flex;flex-wrap:wrap;gap:1rem 2rem}
.both>.scroll{flex:1 1 20rem;min-width:0}.both>figure{flex:1 1 20rem;max-width:26rem;margin:0}
table{border-collapse:collapse;font-size:.9rem}td{padding:.12rem 1.4rem .12rem 0;vertical-align:top}
td:nth-child(2){font-variant-numeric:tabular-nums}
code,pre{font:0.86em/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
pre{background:var(--card);padding:.8rem 1rem;border-radius:.4rem;overflow-x:auto;white-space:pre-wrap}
summary{cursor:pointer;color:var(--soft);font-size:.9rem;padding:.2rem 0}
"""

LONGEST = 3000
"""Characters of a nested value shown on the page; longer ones are in their JSON file."""
MADE = ("command", "date", "seed", "hardware", "settings", "run", "weights")
"""How a result was made, as every file records it."""


def write(run: Path) -> Path:
    """Write RUN/report.html from the files of the run; returns its path.

    What is missing is left out with a sentence that says which command would fill it. Raises UserError when `run` is
    no run folder.
    """
    folder = run_folder.run_folder(str(run))
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"{run} is not a run: it has no config.yaml or metrics.jsonl; give the --out folder of an `iwm pretrain`."
        )
    order = {verb: place for place, verb in enumerate(VERBS)}
    found = sorted(run_folder.read_results(folder), key=lambda result: order.get(verb_of(result), len(order)))
    lines = _lines(folder)
    name = folder.resolve().name
    parts = [
        f"<h1>Image world model: {esc(name)}</h1>",
        _facts(folder, lines, found),
        _verdict(folder, lines, found),
        _curves(folder, lines),
        _gallery(folder),
        _strips(folder, found),
        _tasks(folder, found),
        _segmentation(folder, found),
        _results(folder, found),
        _configuration(folder),
    ]
    path = folder / "report.html"
    files.write_text(path, page(f"{name} - image world model", parts))
    return path


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML page in the common style."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, or none when the file is missing or damaged (which is said on the console)."""
    path = folder / "metrics.jsonl"
    try:
        return read_metrics(path) if path.is_file() else []
    except UserError as damage:
        console.print(f"[yellow]{escape(str(damage))} It is left out of the report.")
        return []


def _command(text: str, folder: Path) -> str:
    """A command to type, with RUN filled in."""
    return f"<code>{esc(text.replace('RUN', shlex.quote(str(folder))))}</code>"


def _missing(sentence: str, command: str, folder: Path) -> str:
    return f'<p class="soft">{esc(sentence)} {_command(command, folder)}</p>'


def _image(path: Path, kind: str, alt: str, caption: str = "") -> str:
    """A PNG file inside the page; a sentence when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return f'<p class="soft">The picture {esc(path.name)} cannot be read and is left out.</p>'
    return embedded(content, kind, alt, caption)


def embedded(png: bytes, kind: str, alt: str, caption: str = "") -> str:
    """A PNG inside the page, with a caption."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    words = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="scroll {kind}"><img alt="{esc(alt)}" src="{source}"></div>{words}</figure>'


def _facts(folder: Path, lines: Sequence[Mapping[str, Any]], found: Sequence[Result]) -> str:
    """What was trained, on what, where and when, in a line or two."""
    settings = config.read_unchecked(folder / "config.yaml")

    def of(group: str, name: str) -> Any:
        values = settings.get(group)
        return values.get(name, "?") if isinstance(values, dict) else "?"

    facts = []
    if settings:
        facts = [
            f"recipe {settings.get('recipe', '?')}",
            f"images {of('data', 'source')} at {of('data', 'image_size')} px",
            f"encoder {of('encoder', 'depth')} x {of('encoder', 'width')}, patches of {of('encoder', 'patch_size')} px",
            f"predictor IWM({of('predictor', 'depth')}, {of('predictor', 'width')}), {of('predictor', 'conditioning')}"
            if of("objective", "kind") != "joint"
            else f"joint embedding, {of('objective', 'invariance')}, no predictor",
        ]
    if lines:
        speeds = sorted(rate for line in lines if (rate := number(line, "images_per_second")) is not None)
        steps, epochs = (number(lines[-1], key) or 0 for key in ("step", "epoch"))
        facts.append(f"{steps:,.0f} steps, {epochs:.4g} epochs")
        if speeds:
            facts.append(f"{speeds[len(speeds) // 2]:,.0f} images a second in {lines[-1].get('precision', '?')}")
    newest = max(found, key=lambda result: str(result.get("date") or ""), default={})
    machine = newest.get("hardware")
    if isinstance(machine, dict):
        gpu = "" if machine.get("gpu") in (None, "none") else f", {machine['gpu']}"
        facts.append(f"evaluated on {machine.get('processor', '?')}, {machine.get('cores', '?')} cores{gpu}")
    if newest.get("date"):
        facts.append(f"last result {str(newest['date']).replace('T', ' ').replace('+00:00', ' UTC')}")
    facts.append(f"page written {datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}")
    return f'<p class="facts">{esc(" · ".join(facts))}</p>'


def _verdict(folder: Path, lines: Sequence[Mapping[str, Any]], found: Sequence[Result]) -> str:
    training, findings = judge_training(lines), judge_results(found)
    whole = [finding.good for finding in (training, *findings)]
    tone = "bad" if False in whole else "good" if True in whole and findings else ""
    cards = "".join(card(finding) for finding in (training, *findings))
    asked = {verb_of(result) for result in found}
    without_twin = "world" in asked and not any("frozen_random_twin_mrr" in result for result in found)
    missing = [
        _missing(sentence, command, folder)
        for needed, sentence, command in (
            (not lines, "There are no training metrics; train, or go on training, with", _TRAIN),
            ("world" not in asked, "The world model has not been measured; do it with", _WORLD),
            (without_twin, "To compare with a twin that has a frozen random encoder:", _WORLD),
            ("probe" not in asked, "The encoder has not been probed; do it with", _PROBE),
            ("finetune" not in asked, "Nothing has been finetuned; do it, then with --predictor random:", _TUNE),
        )
        if needed
    ]
    lead = f'<div class="verdict {tone}"><p class="lead">{esc(headline(training, findings))}</p></div>'
    return f'{lead}<div class="cards">{cards}</div>{"".join(missing)}'


_TRAIN = "iwm pretrain --config RUN/config.yaml --out RUN"
_WORLD = "iwm world RUN --data SOURCE --frozen-random-twin"
_PROBE = "iwm probe RUN --data SOURCE --kind linear"
_TUNE = "iwm finetune RUN --data SOURCE --train predictor --predictor pretrained"


def card(finding: Finding) -> str:
    """A finding in words, with its sign and its bars."""
    tone, mark = {True: ("good", "✓ "), False: ("bad", "✗ "), None: ("", "? ")}[finding.good]
    longest = max((value for _, value in finding.bars), default=0) or 1
    bars = "".join(
        f'<div class="bar{"" if place else " ours"}"><span>{esc(name)}</span>'
        f'<i style="width:{max(0.0, 100 * value / longest):.1f}%"></i><b>{value:.3f}</b></div>'
        for place, (name, value) in enumerate(finding.bars)
    )
    title = f'<h3><span class="mark">{mark}</span>{esc(finding.title)}</h3>'
    return f'<div class="card {tone}">{title}<p>{esc(finding.sentence)}</p>{bars}</div>'


def _curves(folder: Path, lines: Sequence[dict[str, Any]]) -> str:
    heading = "<h2>Training</h2>"
    try:
        figure = figures.curves(lines)
    except UserError:
        return heading + _missing("There are no curves yet; training draws them:", _TRAIN, folder)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=drawing.DPI)
    caption = (
        "A falling loss alone can be a collapse: it should fall below what knowing the position explains while RankMe "
        "and the variance between images stay up. Action sensitivity near 0 is a predictor that ignores the action."
    )
    return heading + embedded(drawn.getvalue(), "wide", "Training curves", caption)


def _gallery(folder: Path) -> str:
    heading, path = "<h2>Views and masks</h2>", folder / "gallery.png"
    if not path.is_file():
        return heading + _missing("There is no gallery of this run; training draws it:", _TRAIN, folder)
    caption = "What one step of training works on. The action leads from the source's colours to the target's."
    return heading + _image(path, "wide", "Gallery of crops, sources, masks and targets", caption)


_CAPTIONS = {
    "world": "told the action, the model imagines the source changed by it; of a bank of changed versions it shows the "
    "nearest to what it imagined, then the truth and its rank; 1 is right.",
    "imagine": "one action, or one parameter over its range; the nearest of the bank to what was imagined, framed "
    "green and solid where it is the truth.",
    "look": "tokens of source, prediction and truth as colours of one principal basis; bright patches are "
    "those a change moves, and those the prediction misses, on one scale a row.",
    "infer": "the action between two images, found by search through the predictor, beside what needs no world model.",
    "undo": "what a probe of clean images reads of corrupted ones, before and after the predictor has undone them.",
}
"""Verbs whose pictures need the width of the page, with what they show."""


def _strips(folder: Path, found: Sequence[Result]) -> str:
    heading = "<h2>What the world model imagines</h2>"
    parts = [_wide(folder, result) for verb in ("world", "imagine") for result in found if verb_of(result) == verb]
    drawn = "".join(parts) or _missing("There are no retrieval strips; they are drawn by", _WORLD, folder)
    acting = [
        _wide(folder, result) for verb in ("look", "infer", "undo") for result in found if verb_of(result) == verb
    ]
    more = "<h2>Looking into it and acting with it</h2>" + "".join(acting) if any(acting) else ""
    return heading + drawn + more


def _wide(folder: Path, result: Result) -> str:
    """The picture of a result with a caption, and what it holds by name and column as tables; nothing without."""
    path, verb = folder / "eval" / f"{result['file']}.png", verb_of(result)
    if not path.is_file():
        return ""
    alt = f"{'Retrieval strips' if verb == 'world' else verb} on {data_of(result)}"
    drawn = _image(
        path, "wide" if verb in ("world", "imagine", "look") else "medium", alt, f"{data_of(result)}: {_CAPTIONS[verb]}"
    )
    beside = path.with_name(f"{path.stem}-averaged.png")
    drawn += _image(beside, "medium", f"{verb}, averaged over actions") if beside.is_file() else ""
    tables = [_table(value) for value in result.values()] if verb in ("look", "undo") else []
    return drawn + "".join(tables)


def _table(value: Any) -> str:
    """A table of a result's part that has rows of equal columns; nothing for any other part."""
    named = isinstance(value, dict)
    items = value.items() if named else enumerate(value) if isinstance(value, list) else ()
    rows = [(name, row) for name, row in items if isinstance(row, dict)]
    if not rows or any(row.keys() != rows[0][1].keys() for _, row in rows):
        return ""
    lines = [[""] * named + [key.replace("_", " ") for key in rows[0][1]]]
    lines += [[str(name)] * named + [in_words(cell) for cell in row.values()] for name, row in rows]
    cells = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table>{cells}</table></div>'


def _tasks(folder: Path, found: Sequence[Result]) -> str:
    """Every task of one predictor beside its twin; nothing where no such thing was asked."""
    parts = []
    for result in found:
        tasks = result.get("tasks")
        if verb_of(result) != "multitask" or not isinstance(tasks, dict):
            continue
        rows: list[tuple[str, ...]] = [("task", "top-1", "predictor of its own", "chance", "classes")]
        for name, task in tasks.items():
            told = task if isinstance(task, dict) else {}
            values = [in_words(told.get(key)) for key in ("top1", "single_task_top1", "chance")]
            rows.append((str(name), *values, str(len(told.get("classes") or ()))))
        cells = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        path, drawn = folder / "eval" / f"{result['file']}.png", ""
        if path.is_file():
            drawn = _image(path, "", f"Accuracy of every task on {data_of(result)}")
        table = f'<div class="scroll"><table>{cells}</table></div>'
        parts.append(
            f'<h3>{esc(str(result["file"]))}</h3><div class="result"><div class="both">{table}{drawn}</div></div>'
        )
    return "<h2>Many tasks, one predictor</h2>" + "".join(parts) if parts else ""


def _segmentation(folder: Path, found: Sequence[Result]) -> str:
    """Segmented images, where there are any: not every run has a use for them."""
    drawn = []
    for result in found:
        path = folder / "eval" / f"{result['file']}.png"
        if verb_of(result) == "segment" and path.is_file():
            caption = (
                f"{result['file']}: mIoU {in_words(number(result, 'miou'))}; nothing pretrained "
                f"{in_words(number(result, 'random_encoder_miou'))}, the majority class everywhere "
                f"{in_words(number(result, 'majority_miou'))}."
            )
            drawn.append(_image(path, "wide", f"Segmented images of {data_of(result)}", caption))
    return "<h2>Segmented images</h2>" + "".join(drawn) if drawn else ""


def _results(folder: Path, found: Sequence[Result]) -> str:
    if not found:
        return "<h2>All results</h2>" + _missing("There are no results yet; start with", _WORLD, folder)
    return "<h2>All results</h2>" + "".join(_result(folder, result) for result in found)


def _result(folder: Path, result: Result) -> str:
    """One result: its numbers, its picture, and how it was made."""
    found = {key: value for key, value in result.items() if key not in (*MADE, "file", "fingerprint")}
    flat = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
    nested = {key: value for key, value in found.items() if key not in flat}
    rows = "".join(f"<tr><td>{esc(key)}</td><td>{esc(in_words(value))}</td></tr>" for key, value in flat.items())
    points = result.get("points")
    for point in points if isinstance(points, list) else ():
        if isinstance(point, dict):
            told = f"{in_words(point.get('top1'))} with {in_words(point.get('trainable_parameters'))}"
            rows += f"<tr><td>{esc(str(point.get('what')))}</td><td>{esc(told)} parameters</td></tr>"
    picture = folder / "eval" / f"{result['file']}.png"
    shown = ""
    if verb_of(result) not in (*_CAPTIONS, "multitask", "segment") and picture.is_file():
        shown = _image(picture, "", str(result["file"]))
    made = {key: result[key] for key in MADE if key in result} | nested
    how = "".join(f"<h3>{esc(key)}</h3><pre>{esc(_told(value, result['file']))}</pre>" for key, value in made.items())
    return (
        f'<div class="result"><h3>{esc(str(result["file"]))}</h3><div class="both">'
        f'<div class="scroll"><table>{rows}</table></div>{shown}</div>'
        f"<details><summary>Command, hardware, settings and details</summary>{how}</details></div>"
    )


def _told(value: Any, file: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=None if isinstance(value, list) else 1)
    return text if len(text) <= LONGEST else f"{text[:200]} ... (the whole is in eval/{file}.json)"


def _configuration(folder: Path) -> str:
    heading, path = "<h2>Configuration</h2>", folder / "config.yaml"
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return heading + _missing(
            "No config.yaml can be read; training writes it:", "iwm pretrain RECIPE --out RUN", folder
        )
    again = _command("iwm pretrain --config RUN/config.yaml --out OTHER", folder)
    return (
        f"{heading}<p>Train the same again: {again}</p>"
        f"<details><summary>All settings (config.yaml)</summary><pre>{esc(text)}</pre></details>"
    )
