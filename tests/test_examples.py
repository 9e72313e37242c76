"""The notebooks in examples/: their Jupyter forms are current and run from the first cell to the last."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "examples" / "tour.py"
OWN = ROOT / "examples" / "own_images.py"
SMALL = {
    '"optim.epochs": 20': '"optim.epochs": 1',
    '"encoder.width": 96': '"encoder.width": 48',
    "epochs=30": "epochs=2",
}
SECONDS = 120
"""Processor time that the whole notebook may take."""


def executed(changes: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, source: Path = TOUR) -> list[Any]:
    """The code cells after a run in a Jupyter kernel, the processor seconds in the last one's output."""
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    nbformat: Any = pytest.importorskip("nbformat", reason="needs nbformat")
    nbclient: Any = pytest.importorskip("nbclient", reason="needs nbclient")
    text = source.with_suffix(".ipynb").read_text()
    for before, after in changes.items():
        before, after = (json.dumps(one)[1:-1] for one in (before, after))
        assert before in text
        text = text.replace(before, after)
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("TMPDIR", str(folder))
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=str(folder))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_of(cells: list[Any], words: str, kind: str) -> str:
    """What the cell that holds these words shows as its value, of that MIME type."""
    (cell,) = (cell for cell in cells if words in cell.source)
    (value,) = (one for one in cell.outputs if one.output_type == "execute_result")
    return "".join(value.data[kind])


def check(cells: list[Any], folder: Path) -> None:
    """Every step of the use has left what a reader looks for."""
    assert "Run " in output_of(cells, "iwm.pretrain", "text/html")
    assert "<progress" in str([cell.outputs for cell in cells if "iwm.pretrain" in cell.source])
    for words, entry in {"iwm.world(": "mrr", "iwm.probe(": "top1", "iwm.finetune(": "trainable_parameters"}.items():
        shown = output_of(cells, words, "text/html")
        assert f"<td>{entry}</td>" in shown
        assert "data:image/png;base64," in shown
    assert output_of(cells, "run.figure(", "image/png")
    assert output_of(cells, "iwm.imagine(", "image/png")
    (page,) = folder.glob("iwm-tour-*/run/report.html")
    assert "objects-in-memory" in page.read_text()
    line = json.loads((page.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss_over_position_mean"] == pytest.approx(line["loss"] / line["position_mean_loss"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_tour_runs_in_jupyter(tmp_path, monkeypatch):
    """Every cell; only the training is made short."""
    check(executed(SMALL, tmp_path, monkeypatch), tmp_path)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_tour_takes_under_two_minutes_and_learns(tmp_path, monkeypatch):
    cells = executed({}, tmp_path, monkeypatch)
    check(cells, tmp_path)
    assert float(cells[-1].outputs[0].text) < SECONDS
    (path,) = tmp_path.glob("iwm-tour-*/run/eval/world-*.json")
    world = json.loads(path.read_text())
    assert world["mrr"] > 2 * world["mrr_chance"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_on_your_own_images_runs_in_jupyter(tmp_path, monkeypatch):
    """Every cell; only the training is made short. What it says of the cost comes before anything is written."""
    short = {'"optim.epochs": 20': '"optim.epochs": 2', '"run.log_every": 100': '"run.log_every": 20'}
    cells = executed(short, tmp_path, monkeypatch, OWN)
    (planned,) = (cell for cell in cells if "--dry-run" in cell.source)
    assert "nothing was written" in str(planned.outputs)
    assert output_of(cells, "run.verdict()", "text/html")
    assert output_of(cells, "iwm.imagine(", "image/png")
    (result,) = tmp_path.glob("iwm-own-*/run/eval/imagine-*.json")
    assert result.with_suffix(".png").is_file()


@pytest.mark.parametrize("notebook", [TOUR, OWN], ids=lambda path: path.stem)
def test_the_jupyter_form_is_that_of_the_marimo_notebook(notebook):
    pytest.importorskip("marimo", reason="needs marimo")
    exported = runpy.run_path(str(ROOT / "tools" / "export_notebooks.py"))["exported"]
    ours = json.loads(notebook.with_suffix(".ipynb").read_text())["cells"]
    theirs = json.loads(exported(notebook))["cells"]
    assert [(cell["cell_type"], cell["source"]) for cell in ours] == [
        (cell["cell_type"], cell["source"]) for cell in theirs
    ], "run python tools/export_notebooks.py"
