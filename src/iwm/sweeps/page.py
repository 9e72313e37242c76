"""The page of a sweep and its table on the console: the figures, the guidance, and the numbers of all runs."""

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwm.reports import page
from iwm.reports.verdict import join
from iwm.runtime import drawing, files
from iwm.runtime.console import console, in_words, table
from iwm.sweeps import figures
from iwm.sweeps.figures import COLOURS, MARKERS
from iwm.sweeps.guidance import ACCURACIES, PAPER, Row, advise

COLUMNS = ("cell", "state", "mrr", "mrr_own_range", *ACCURACIES, "healthy")


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write DIR/figure-4.png, figure-5.png, tables.png and DIR/sweep.html, which holds them; returns the page."""
    runs = content["runs"]
    drawn = {
        "figure-4": figures.scatter(runs),
        "figure-5": figures.spectrum(runs),
        "tables": figures.bars(content["tables"]),
    }
    pngs = {}
    for name, figure in drawn.items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=drawing.DPI)
        pngs[name] = file.getvalue()
        with files.replacing(folder / f"{name}.png") as part:
            part.write_bytes(pngs[name])
    path = folder / "sweep.html"
    files.write_text(path, _page(folder, content, pngs))
    return path


def _page(folder: Path, content: Mapping[str, Any], pngs: Mapping[str, bytes]) -> str:
    runs, settings, esc = content["runs"], content["settings"], page.esc
    done = sum(run["state"] == "finished" for run in runs)
    machine = content["hardware"]
    protocol = settings["protocol"]
    facts = [
        f"{done} of {len(runs)} runs finished",
        f"recipe {settings['recipe']}",
        f"images {', '.join(Path(part).name for part in settings['pretraining']['data.source'].split(','))}",
        f"seed {settings['seed']}",
        f"MRR over {protocol['world_images']} images in banks of {protocol['bank']}",
        f"{machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}",
        str(content["date"]).replace("T", " ").replace("+00:00", " UTC"),
    ]
    cards = "".join(page.card(finding) for finding in advise(runs))
    first = runs[0]
    controls = [
        f"{called} {first[key]:.3f}"
        for key, called in (
            ("random_encoder_top1", "random encoder"),
            ("raw_pixels_top1", "raw pixels"),
            ("chance_top1", "chance"),
        )
        if first.get(key) is not None
    ]
    beside = f"Beside the linear probes: {join(controls)}. " if controls else ""
    parts = [
        "<h1>Sweep: invariance and equivariance</h1>",
        f'<p class="facts">{esc(" · ".join(facts))}</p>',
        f'<div class="cards">{cards}</div>',
        '<p class="soft">Noise is two standard errors over the images that were measured on. Every cell was trained '
        "once, so differences between seeds are not in it: repeat what matters with other seeds.</p>",
        "<h2>The spectrum (paper figure 5)</h2>",
        page.embedded(pngs["figure-5"], "wide", "Runs along the invariance-equivariance axis"),
        "<h2>MRR against accuracy (paper figure 4)</h2>",
        page.embedded(
            pngs["figure-4"],
            "wide",
            "Accuracies against MRR",
            f"Bars are one standard error. Stars, other recipes, are not in r. The paper's: {PAPER}; attentive: none.",
        ),
        "<h2>Conditioning, difficulty, capacity (paper tables 1 and 2)</h2>",
        page.embedded(
            pngs["tables"],
            "wide",
            "MRR by conditioning, and by difficulty and predictor",
            f"The diamonds are the paper's ({PAPER}): another scale, for orientation and not for comparison. MRR is on "
            "one bank for all runs, the range of the level `destructive`.",
        ),
        _conditioning_table(content["tables"]),
        _difficulty_table(content["tables"]),
        "<h2>All runs</h2>",
        f"<p>{esc(beside)}MRR on the common bank; own range: on a bank of the run's own strength.</p>",
        _table([COLUMNS, *([_cell(run[name]) for name in COLUMNS] for run in runs)]),
        *(f'<p class="soft">{esc(sentence)}</p>' for sentence in _trouble(runs)),
        f"<h2>Again</h2><p>The same command goes on where it stopped:</p><pre>{esc(content['command'])}</pre>",
    ]
    return page.page(f"Sweep {folder.resolve().name}", parts)


def _cell(value: Any) -> str:
    return {True: "healthy", False: "ill"}[value] if isinstance(value, bool) else in_words(value)


def _trouble(runs: Sequence[Row]) -> list[str]:
    """A sentence for what failed, was left out, or trained badly."""
    told = [f"{run['cell']} failed: {run['failed']}" for run in runs if run["failed"]]
    for run in runs:
        told += [f"{run['cell']}, {name}: {why}" for name, why in run["refused"].items()]
        told += [f"{run['cell']}: {run['health']}"] if run["healthy"] is False else []
    return told


def _table(rows: Sequence[Sequence[str]]) -> str:
    esc = page.esc
    head = "".join(f"<th>{esc(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _conditioning_table(found: Mapping[str, Any]) -> str:
    one = found["conditioning"]
    rows = [("ours", one["mrr"]), (f"paper ({found['paper_setting']})", one["paper"])]
    return _table([("MRR", *COLOURS), *((name, *(_cell(row.get(c)) for c in COLOURS)) for name, row in rows)])


def _difficulty_table(found: Mapping[str, Any]) -> str:
    two = found["difficulty"]
    rows = [(f"ours, {size}", row) for size, row in two["mrr"].items()]
    rows += [(f"paper, {size} ({found['paper_setting']})", row) for size, row in two["paper"].items()]
    return _table([("MRR", *MARKERS), *((name, *(_cell(row.get(c)) for c in MARKERS)) for name, row in rows)])


def show(content: Mapping[str, Any], folder: Path) -> None:
    """Print the runs as a table, the guidance in words, and where the page is."""
    shown = ("cell", "mrr", *ACCURACIES, "healthy")  # what 80 columns hold
    rows = ([run[name] if name != "healthy" else _cell(run[name]) for name in shown] for run in content["runs"])
    console.print(table("Sweep", ("run", "MRR", "linear", "attentive", "finetuned", "doctor"), rows))
    for finding in content["guidance"]:
        console.print(f"{finding['title']} {finding['sentence']}", markup=False)
    console.print(f"Open {shlex.quote(str(folder / 'sweep.html'))}", soft_wrap=True, markup=False)
