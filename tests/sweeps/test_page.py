"""The page of a sweep is whole and safe, with every number it was given and without what is missing."""

from pathlib import Path

import numpy as np
import pytest
from reports.test_page import Page

from iwm.sweeps import guidance
from iwm.sweeps.page import scatter, spectrum, write
from sweeps.test_guidance import TRADE, run

CONTENT = {
    "settings": {
        "recipe": "demo",
        "seed": 0,
        "pretraining": {"data.source": "/some/where/photos.zip"},
        "protocol": {"world_images": 64, "bank": 256},
    },
    "hardware": {"processor": "one", "cores": 2, "gpu": "none"},
    "date": "2026-11-22T00:00:00+00:00",
    "command": "iwm sweep demo --out '<b>'",
}
OTHER = run("mae-demo-x", 0.3, 0.35, 0.5) | {"cell": "mae-demo", "recipe": "mae-demo"}
JOINT = run("moco-demo-x", None, 0.5) | {"cell": "moco-demo", "recipe": "moco-demo"}
JOINT |= {"conditioning": None, "difficulty": None, "predictor": None}
MISSING = run("adaln-jitter-2x96", None, None, failed="It <diverged>.", healthy=False, state="failed")


def content(runs: list[dict]) -> dict:
    return {**CONTENT, "runs": runs, "tables": guidance.tables(runs), "guidance": []}


def test_the_page_holds_all(tmp_path: Path):
    runs = [
        *TRADE,
        run("adaln-destructive-4x192", 0.62, 0.45, 0.72, refused={"attentive": "No & no."}),
        OTHER,
        JOINT,
        MISSING,
    ]
    path = write(tmp_path, content(runs))
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("img") == 3
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for words in (
        "For an invariant representation take",
        "8 of 9 runs finished",
        "photos.zip",
        "It <diverged>.",
        "No & no.",
    ):
        assert words in page.text, words
    for row in runs:
        assert row["cell"] in page.text
    assert "ImageNet-1k, ViT-B/16, 300 epochs" in page.text
    assert "/some/where" not in text
    for name in ("figure-4.png", "figure-5.png", "tables.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize("runs", [[MISSING], TRADE[:1]], ids=["nothing measured", "one run"])
def test_little_makes_a_page_too(tmp_path: Path, runs: list[dict]):
    text = Page(write(tmp_path, content(runs)).read_text()).text
    assert "Too few runs to say" in text
    assert "n too small" in text


def test_the_scatter_shows_every_run_and_says_r_and_n():
    figure = scatter([*TRADE, OTHER])
    linear, attentive, tuned = figure.axes
    r = guidance.correlations([*TRADE, OTHER])["linear"]["r"]
    assert f"r = {r:+.2f} (n = 5)\npaper: r = -0.85" in linear.get_title(loc="left")
    assert "n too small: 0 runs" in attentive.get_title(loc="left")
    shown = {
        (np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0])
        for line in linear.lines
        if line.get_marker() not in ("None", "|", "_")
    }
    assert shown == {(row["mrr"], row["linear"]) for row in [*TRADE, OTHER]}
    assert [text.get_text() for text in tuned.texts] == ["mae-demo"]


def test_a_joint_embedding_stands_beside_the_axis():
    measured = {**JOINT, "linear": 0.5}
    left, right = spectrum([*TRADE, measured]).axes
    assert next(label.get_text() for label in left.get_yticklabels()) == JOINT["cell"]
    assert [note.get_text() for note in left.texts] == ["no world model"]
    assert any(0.5 in np.asarray(line.get_xdata()) for line in right.lines)
