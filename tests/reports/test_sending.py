"""`iwm report --report-to`: the page, pictures and main numbers go to trackers, each once."""

from typing import Any, ClassVar

import pytest
from conftest import tiny, trained_on, with_run
from planted_runs import save

import iwm
from iwm import cli
from iwm.evaluation import after_pretraining
from iwm.run_folder import RunFolder, identity
from iwm.runtime import files
from iwm.runtime.errors import Busy, UserError
from iwm.training.trackers import TRACKERS, Tracker


class Planted(Tracker):
    """Keeps what it is sent."""

    name, mend = "planted", "plant it again"
    told: ClassVar[list[Any]] = []
    broken: ClassVar[bool] = False

    def open(self):
        if self.broken:
            raise ConnectionError("no network")

    def scalars(self, step, values):
        self.told.append((step, {name: value for name, value in values.items() if "/" in name or name == "loss"}))

    def picture(self, name, path, step):
        self.told.append((step, name, path.read_bytes()[:4]))

    def page(self, path, words, step):
        self.told.append((step, "page", path.name, words))

    def close(self):
        self.told.append("close")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setitem(TRACKERS, "planted", Planted)
    monkeypatch.setattr(Planted, "told", [])
    monkeypatch.setattr(Planted, "broken", False)
    return Planted.told


def test_lines_pictures_results_and_page_are_sent_once(trained, told, capsys):
    source = str(trained.parent / "pictures.npz")
    result = iwm.world(trained, data=source, images=2, bank=4, **{"speed.device": "cpu", "speed.precision": "fp32"})
    assert cli.main(["report", str(trained), "--report-to", "planted"]) == 0
    assert "Sent to planted." in capsys.readouterr().out
    assert [entry[0] for entry in told[1:5]] == [2, 4, 6, 8]
    assert told[0][:2] == (0, "gallery")
    assert (8, result.path.stem, b"\x89PNG") in told
    (numbers,) = (values for _, values in [one for one in told if len(one) == 2] if "loss" not in values)
    assert numbers[f"{result.path.stem}/mrr"] == result.mrr
    page = told[-2]
    assert page[:3] == (8, "page", "report.html")
    assert page[3].startswith(("Training is healthy at step 8", "Training is ill at step 8"))
    before = len(told)
    assert cli.main(["report", str(trained), "--report-to", "planted"]) == 0
    again = [entry for entry in told[before:] if entry != "close" and entry[1] != "page"]
    assert again == [], "nothing but the page has changed since"


def test_results_of_earlier_weights_are_not_sent_at_the_newest_step(trained, told, capsys):
    for data, mark in (("old", "ab"), ("new", identity(str(trained)))):
        save(
            str(trained),
            "probe",
            data,
            {"data": data, "kind": "linear", "top1": 0.5, "chance": 0.1, "run_weights": mark},
            {},
        )
    iwm.report(trained, report_to="planted")
    sent = {name for one in told if len(one) == 2 for name in one[1] if "/" in name}
    assert {name.partition("/")[0] for name in sent} == {"probe-new"}
    assert "the run holds other weights now: probe-old; measure again" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_sent_is_one_sentence_before_the_page(trained, told, tmp_path, monkeypatch):
    monkeypatch.setattr(Planted, "broken", True)
    page = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"planted cannot begin \(no network\); plant it again"):
        iwm.report(trained, report_to="planted", out=str(page))
    assert not page.exists()
    with pytest.raises(UserError, match="did you mean 'planted'"):
        iwm.report(trained, report_to="plantd")
    monkeypatch.setattr(Planted, "broken", False)
    with pytest.raises(UserError, match=r"FILE\.html"):
        iwm.report(trained, report_to="planted", out=str(tmp_path))
    assert told[-1] == "close", "a page that cannot be written leaves no tracker open"


def test_a_run_that_is_being_trained_is_not_sent(trained, told, tmp_path):
    """Training sends its lines itself: two that send would tell the tracker the same, or forget what they told it."""
    page = tmp_path / "page.html"
    with files.lock(RunFolder(trained).training_lock, "trained"):
        with pytest.raises(Busy, match=r"is being trained, or sent to trackers, by process .* wait until it has ended"):
            iwm.report(trained, report_to="planted", out=str(page))
        assert told == []
        assert not page.exists()
        iwm.report(trained, out=str(page))
    iwm.report(trained, report_to="planted")
    assert told


def test_pretraining_ends_with_the_report(pictures, tmp_path, told, monkeypatch, capsys):
    settings = with_run(trained_on(tiny(), source=pictures, out=str(tmp_path / "run")), report_to="planted")
    after_pretraining.pretrain(settings)
    assert (8, "page", "report.html") in [entry[:3] for entry in told if len(entry) == 4]
    monkeypatch.setattr(Planted, "broken", True)
    after_pretraining.pretrain(settings)  # nothing is left to do but the report
    assert "The report was not sent. planted cannot begin (no network)" in " ".join(capsys.readouterr().err.split())
