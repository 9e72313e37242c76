"""The page is whole, safe and true, and missing parts are named."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from planted_runs import PROBE, WORLD, hold, plant, tune
from planted_runs import save as save_result

from iwm.reports.finding import Finding
from iwm.reports.page import card, render, write
from iwm.run_folder import RunFolder
from iwm.runtime.drawing import Figure, save
from iwm.runtime.errors import UserError

NASTY = "<script>alert('x')</script> & \"data\""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, tags and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_a_good_run_makes_a_whole_safe_page(tmp_path: Path) -> None:
    run = plant(tmp_path / "a <b>run</b> & more")
    path = save_result(run, "world", "objects", {**WORLD, "data": NASTY, "frozen_random_twin_mrr": 0.3}, {"seed": 0})
    save(Figure((1, 1)), path.with_suffix(".png"))
    save(Figure((1, 1)), Path(run) / "gallery.png")
    probe = save_result(run, "probe", "objects", {**PROBE, "data": "objects", "note": NASTY}, {NASTY: NASTY})
    probe.with_suffix(".png").write_text("no picture at all")
    tune(run, "pretrained", 0.58)
    tune(run, "random", 0.50)
    written = write(Path(run))
    assert written == Path(run) / "report.html"
    text = written.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert NASTY in page.text
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.tags.count("img") == 3  # curves, gallery, strips; the probe's picture is damaged
    assert "cannot be read" in page.text
    assert "The training is healthy, and every evaluation beats its controls." in page.text
    for file in RunFolder(Path(run)).results():
        assert file["file"] in page.text
    for number in ("0.4200", "0.4600", "0.5800", "0.5000"):
        assert number in page.text


def test_results_of_earlier_weights_are_said_to_be_so(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    for verb, payload in (("world", WORLD), ("probe", PROBE)):
        mark = {"run_weights": "cd" if verb == "probe" else "ab"}
        path = save_result(run, verb, "objects", {**payload, **mark, "data": "objects"}, {"seed": 0})
        save(Figure((1, 1)), path.with_suffix(".png"))
    hold(run, "cd")
    text = Page(write(Path(run)).read_text()).text
    for words in (
        "World model on objects (of earlier weights) Measured on earlier weights than the run now holds",
        "objects (of earlier weights): told the action",
        "world-objects (of earlier weights)",
    ):
        assert words in text, words
    assert "probe-objects (of earlier weights)" not in text
    assert "every evaluation beats its controls" in text, "the one that is of these weights"
    hold(run, "ab")
    assert "world-objects (of earlier weights)" not in Page(write(Path(run)).read_text()).text


def test_what_an_instance_probe_finds_is_shown(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    payload = {"kind": "instance", "data": "photos", "top1": 0.4, "random_encoder_top1": 0.1, "n_val": 100}
    path = save_result(run, "probe", "photos", payload, {"seed": 0}, variant="instance")
    for ending in ("", "-nearest"):
        save(Figure((1, 1)), path.with_name(f"{path.stem}{ending}.png"))
    page = Page(write(Path(run)).read_text())
    assert page.tags.count("img") == 3  # curves, bars, nearest
    assert "photos: an image, a changed crop of it, and the nearest in the gallery" in page.text
    assert "Of 100 images 40.0% are found again by a changed crop: above a random encoder (10.0%)." in page.text


def test_names_are_text_and_never_markup_or_template_code(tmp_path: Path) -> None:
    name = "<b>&\"' {{ 271 * 997 }} {% if %}"
    run = Path(plant(tmp_path / name))
    save_result(str(run), "world", "objects", {**WORLD, "data": name, name: name}, {name: [name]})
    save(Figure((1, 1)), run / "eval" / "look-objects.png")
    rows = {"fingerprint": "x", "data": name, "rows": {name: {"a_column": 1.0, name: None}}}
    (run / "eval" / "look-objects.json").write_text(json.dumps(rows))
    (run / "config.yaml").write_text(f"# {name} </pre>\n")
    text = write(run).read_text()
    page = Page(text)
    assert page.tags.count("b") == page.tags.count("i")  # the numbers of the bars, and no other
    assert f"Image world model: {name}" in page.text
    assert f"look on {name}" in page.alternatives
    assert "a column" in page.text
    assert f"# {name} </pre>" in page.text
    assert str(271 * 997) not in page.text  # a smaller product may stand in a path or on a clock
    assert text.count("</pre>") == page.tags.count("pre")


def test_a_card_shows_its_sign_and_ours_first() -> None:
    good = card(Finding("Probe", True, "Above.", (("ours", 0.5), ("chance", 0.25), ("broken", -1.0))))
    assert (good.tone, good.mark) == ("good", "✓")
    assert good.bars == [("ours", "100.0%", "0.500"), ("chance", "50.0%", "0.250"), ("broken", "0.0%", "-1.000")]
    marks = [card(Finding("Probe", sign, "")).mark for sign in (False, None)]
    assert marks == ["✗", "?"]


def test_a_name_without_a_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="name"):
        render("report.html.jinja", {"run": "a", "elsewhere": ""})


def test_jinja_is_imported_only_when_a_page_is_written() -> None:
    code = "import sys, iwm.reports.page, iwm.sweeps.page; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bad_run_is_called_bad(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", target_variance=0.001)
    save_result(run, "world", "objects", {**WORLD, "mrr": 0.024}, {})
    save_result(run, "probe", "objects", {**PROBE, "top1": 0.2}, {}, variant="linear")
    tune(run, "pretrained", 0.4)
    tune(run, "random", 0.5)
    text = Page(write(Path(run)).read_text()).text
    assert "The training is ill, and no evaluation beats its controls." in text
    assert "The EMA encoder's features hardly depend on the image" in text
    assert "does not follow the action" in text
    assert "BELOW raw pixels (33.0%)" in text
    assert "learned nothing useful yet" in text
    assert "BELOW a random one (50.0%): -10.0 points" in text
    assert "iwm world" in text  # the twin is asked for


def test_missing_parts_are_named_with_their_command(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    (Path(run) / "metrics.jsonl").unlink()
    page = Page(write(Path(run)).read_text())
    assert "img" not in page.tags
    for verb in ("pretrain", "world", "probe", "finetune"):
        assert f"iwm {verb} " in page.text
    assert "Nothing is known of the training" in page.text


@pytest.mark.parametrize("damage", ["", "{", '{"step": 1}\n', '{"step": 1, "loss": null, "health_loss": "x"}\n'])
def test_damaged_files_still_give_a_page(damage: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    (run / "metrics.jsonl").write_text(damage)
    (run / "config.yaml").write_text("a: [")
    odd = {"fingerprint": "x", "settings": "none", "hardware": 3, "data": None, "mrr": None, "top1": "high", "date": 5}
    for verb in ("world", "probe", "finetune", "other"):
        (run / "eval" / f"{verb}.json").write_text(json.dumps(odd | {"predictor": "pretrained"}))
    text = Page(write(run).read_text()).text
    assert "No evaluation" in text or "no evaluation" in text


def test_a_diverged_run_is_ill(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", loss=math.nan, rankme=math.nan)
    assert "diverged" in Page(write(Path(run)).read_text()).text


def test_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="photos is not a run"):
        write(tmp_path / "photos")
    with pytest.raises(UserError, match="no run at"):
        write(tmp_path / "nowhere")


def test_the_page_of_a_run_that_may_only_be_read_goes_elsewhere(tmp_path: Path) -> None:
    run = plant(tmp_path / "run")
    path = tmp_path / "mine" / "page.html"
    assert write(run, path) == path
    Page(path.read_text())
    assert not RunFolder(Path(run)).report.exists()
    with pytest.raises(UserError, match=r"is a folder; give --out another FILE\.html"):
        write(run, tmp_path)


def test_a_page_takes_the_place_of_pages_alone(tmp_path: Path) -> None:
    run, notes = plant(tmp_path / "run"), tmp_path / "notes.md"
    notes.write_text("# Mine\n")
    with pytest.raises(UserError, match=r"notes\.md holds something else than the page; give --out another FILE"):
        write(Path(run), out=notes)
    assert notes.read_text() == "# Mine\n"
    own = tmp_path / "index.html"
    content = "<!DOCTYPE html>\n<html><head><title>My site</title></head><body>Image world model</body></html>\n"
    own.write_text(content)
    with pytest.raises(UserError, match=r"index\.html holds something else than the page; give --out another FILE"):
        write(Path(run), out=own)
    assert own.read_text() == content
    for _ in range(2):
        assert write(Path(run), out=tmp_path / "page.html").is_file()
    page = tmp_path / "page.html"
    mark = "<!-- iwm report -->\n"
    text = page.read_text()
    assert text.startswith(f"<!DOCTYPE html>\n{mark}")
    page.write_text(text.replace(mark, ""))
    assert write(Path(run), out=page).read_text().count(mark) == 1, "pages of older versions have none"
