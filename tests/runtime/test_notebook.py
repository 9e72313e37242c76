"""Progress bars of notebooks, without a notebook."""

import sys
from types import SimpleNamespace

import pytest

from iwm.runtime import notebook
from iwm.runtime.console import progress, shows_bars
from iwm.runtime.notebook import NotebookProgress


def test_outside_of_notebooks_there_is_no_display():
    assert notebook.display() is None


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What a marimo notebook would show, one drawing after the other."""
    shown: list[str] = []
    marimo = SimpleNamespace(
        running_in_notebook=lambda: True, Html=lambda text: text, output=SimpleNamespace(replace=shown.append)
    )
    monkeypatch.setitem(sys.modules, "marimo", marimo)
    return shown


def test_a_bar_in_marimo_is_replaced_while_it_moves(lines, monkeypatch):
    monkeypatch.setattr(notebook, "EVERY", 0.0)
    with progress("images") as bar:
        task = bar.add_task("<world>", total=4, note="")
        for _ in range(4):
            bar.advance(task)
    assert isinstance(bar, NotebookProgress)
    assert "&lt;world&gt;" in lines[-1]
    assert "<progress value='4' max='4'>" in lines[-1]
    assert "4/4 images" in lines[-1]
    assert any("<progress value='2' max='4'>" in line for line in lines)
    assert shows_bars()


def test_it_is_drawn_a_few_times_a_second(lines):
    with progress() as bar:
        task = bar.add_task("pretrain", total=1000, note="")
        for step in range(1000):
            bar.update(task, completed=step + 1)
    assert len(lines) < 20
    assert "1,000/1,000 steps" in lines[-1]


def test_a_bar_in_jupyter_has_one_place(monkeypatch):
    calls = []

    def display(content: str, display_id: bool) -> SimpleNamespace:
        calls.append(("display", content))
        return SimpleNamespace(update=lambda content: calls.append(("update", content)))

    ipython = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=object()),
        display=SimpleNamespace(HTML=lambda text: text, display=display),
    )
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with progress() as bar:
        bar.add_task("pretrain", total=2, note="")
    assert [kind for kind, _ in calls] == ["display", "update"]
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert notebook.display() is None
