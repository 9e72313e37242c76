"""The page of a sweep and its table on the console: the figures, the guidance, and the numbers of all runs."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwm.data.sources import sources_of
from iwm.reports.finding import join
from iwm.reports.page import Picture, Rows, card, embed, render
from iwm.runtime import files
from iwm.runtime.console import console, in_words, table
from iwm.runtime.drawing import png_of
from iwm.sweeps import figures
from iwm.sweeps.figures import MARKERS
from iwm.sweeps.guidance import ACCURACIES, PAPER, Row, advise, columns

COLUMNS = ("cell", "state", "mrr", "mrr_own_range", *ACCURACIES, "healthy")


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write DIR/figure-4.png, figure-5.png, tables.png and DIR/sweep.html, which holds them; returns the page."""
    runs, tables = content["runs"], content["tables"]
    pngs = {
        "figure-4": png_of(figures.scatter(runs)),
        "figure-5": png_of(figures.spectrum(runs)),
        "tables": png_of(figures.bars(tables)),
    }
    for name, png in pngs.items():
        with files.replacing(folder / f"{name}.png") as part:
            part.write_bytes(png)
    filling = {
        "name": folder.resolve().name,
        "facts": _facts(content),
        "findings": [card(finding) for finding in advise(runs)],
        **_pictures(pngs),
        "conditioning": _conditioning_rows(tables),
        "difficulty": _difficulty_rows(tables),
        "controls": _controls(runs[0]),
        "runs": [COLUMNS, *([_cell(run[name]) for name in COLUMNS] for run in runs)],
        "trouble": [*([note] if (note := content.get("precision_note")) else []), *_trouble(runs)],
        "command": content["command"],
    }
    path = folder / "sweep.html"
    files.write_text(path, render("sweep.html.jinja", filling))
    return path


def _facts(content: Mapping[str, Any]) -> list[str]:
    """What was swept over, on what, where and when."""
    runs, settings, machine = content["runs"], content["settings"], content["hardware"]
    protocol = settings["protocol"]
    count = sum(run["state"] == "finished" for run in runs)
    sources = sources_of(settings["pretraining"]["data.source"])
    return [
        f"{count} of {len(runs)} runs finished",
        f"recipe {settings['recipe']}",
        f"images {', '.join(Path(source).name for source in sources)}",
        f"seed {settings['seed']}",
        f"MRR over {protocol['world_images']} images in banks of {protocol['bank']}",
        f"{machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}",
        str(content["date"]).replace("T", " ").replace("+00:00", " UTC"),
    ]


def _pictures(pngs: Mapping[str, bytes]) -> dict[str, Picture]:
    """The figures with their captions."""
    return {
        "spectrum": embed(pngs["figure-5"], "Runs along the invariance-equivariance axis", "wide"),
        "scatter": embed(
            pngs["figure-4"],
            "Accuracies against MRR",
            "wide",
            "Bars are one standard error over images, not seeds. Stars, other recipes, are not in r. "
            f"The paper's: {PAPER}; attentive: none.",
        ),
        "bars": embed(
            pngs["tables"],
            "MRR by conditioning, and by difficulty and predictor",
            "wide",
            f"The diamonds are the paper's ({PAPER}): another scale, for orientation and not for comparison. MRR is on "
            "one bank for all runs, the range of the level `destructive`.",
        ),
    }


def _controls(run: Row) -> str:
    """The controls of the linear probes; empty where none was measured."""
    controls = {"random_encoder_top1": "random encoder", "raw_pixels_top1": "raw pixels", "chance_top1": "chance"}
    return join([f"{label} {run[key]:.3f}" for key, label in controls.items() if run.get(key) is not None])


def _cell(value: Any) -> str:
    return {True: "healthy", False: "ill"}[value] if isinstance(value, bool) else in_words(value)


def _trouble(runs: Sequence[Row]) -> list[str]:
    """A sentence for what failed, was left out, or trained badly."""
    sentences = [f"{run['cell']} failed: {run['failed']}" for run in runs if run["failed"]]
    for run in runs:
        sentences += [f"{run['cell']}, {name}: {reason}" for name, reason in run["refused"].items()]
        sentences += [f"{run['cell']}: {run['health']}"] if run["healthy"] is False else []
    return sentences


def _conditioning_rows(tables: Mapping[str, Any]) -> Rows:
    """Table 1, the columns' names first."""
    one = tables["conditioning"]
    rows = {"ours": one["mrr"], f"paper ({tables['paper_setting']})": one["paper"]}
    return _mrr_rows(rows, columns(one["mrr"]))


def _difficulty_rows(tables: Mapping[str, Any]) -> Rows:
    """Table 2, the columns' names first."""
    two = tables["difficulty"]
    rows = {f"ours, {size}": row for size, row in two["mrr"].items()}
    rows |= {f"paper, {size} ({tables['paper_setting']})": row for size, row in two["paper"].items()}
    return _mrr_rows(rows, list(MARKERS))


def _mrr_rows(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> Rows:
    return [["MRR", *columns], *([name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items())]


def show(content: Mapping[str, Any], folder: Path) -> None:
    """Print the runs as a table, the guidance in words, and where the page is."""
    columns = ("cell", "mrr", *ACCURACIES, "healthy")  # what 80 columns hold
    rows = ([run[name] if name != "healthy" else _cell(run[name]) for name in columns] for run in content["runs"])
    console.print(table("Sweep", ("run", "MRR", "linear", "attentive", "finetuned", "doctor"), rows))
    warn_of_precision(content)
    for finding in content["guidance"]:
        console.print(f"{finding['title']} {finding['sentence']}")
    console.print(f"Open {shlex.quote(str(folder / 'sweep.html'))}", soft_wrap=True)


def warn_of_precision(content: Mapping[str, Any]) -> None:
    """Print the note on results of unlike precision, where there is one."""
    if note := content.get("precision_note"):  # older sweeps hold none
        console.print(f"[yellow]{note}", soft_wrap=True)
