"""The page of a sweep is whole and safe, with every number it was given and without what is missing."""

from pathlib import Path

import pytest
from reports.test_page import Page

from iwm.sweeps import guidance
from iwm.sweeps.page import show, write
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


NAME = "<b>&\"' {{ 7 * 7 }} {% if %}"


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
        "On these images the most invariant is",
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


def test_names_are_text_and_never_markup_or_template_code(tmp_path: Path):
    folder = tmp_path / NAME
    folder.mkdir()
    runs = [{**MISSING, "cell": NAME, "failed": NAME, "refused": {NAME: NAME}}, *TRADE]
    page = Page(write(folder, content(runs) | {"command": NAME}).read_text())
    assert page.tags.count("b") == page.tags.count("i")  # the numbers of the bars, and no other
    for words in (f"Sweep {NAME}", f"{NAME} failed: {NAME}", f"{NAME}, {NAME}: {NAME}"):
        assert words in page.text, words
    assert "49" not in page.text


def test_unlike_precisions_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = content(TRADE) | {"precision_note": "Measured were [a] in bf16."}
    assert "Measured were [a] in bf16." in Page(write(tmp_path, whole).read_text()).text
    show(whole, tmp_path)
    assert "Measured were [a] in bf16." in capsys.readouterr().err
