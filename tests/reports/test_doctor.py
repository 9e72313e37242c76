"""The doctor's verdict as an exit code, with its reasons."""

import json
from pathlib import Path

import pytest
from planted_runs import metrics, plant

from iwm import cli
from iwm.reports.doctor import doctor
from iwm.reports.run import Run
from iwm.run_folder import RunFolder
from iwm.runtime.errors import UserError
from iwm.verbs.doctor import Doctor


def test_the_verdict_is_on_the_newest_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(tmp_path / "run", step=50, action_sensitivity=0.0)
    with RunFolder(Path(run)).metrics.open("a") as file:
        file.write(metrics())
    assert doctor(Doctor(run=run)) == 0
    assert capsys.readouterr().out.startswith("healthy at step 100\n")


def test_an_ill_run_is_exit_code_1_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(tmp_path / "run", action_sensitivity=0.0)
    assert doctor(Doctor(run=run)) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("ill at step 100\n")
    assert "The predictor ignores the action" in printed


INSTRUMENTS = {
    "target_pixel_r2": 0.66,
    "target_pixel_r2_blocks": [0.84, 0.41],
    "target_position_share": 0.33,
    "target_rankme": 93.4,
    "photometric_share": 0.55,
    "photometric_share_last": 0.12,
    "action_slope": 0.5,
    "action_correlation": 0.8,
}


@pytest.mark.parametrize(("sensitivity", "code"), [(0.7, 0), (0.0, 1), (None, 1)], ids=["healthy", "ill", "diverged"])
def test_every_instrument_is_shown_whatever_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sensitivity: float | None, code: int
) -> None:
    run = plant(tmp_path / "run", action_sensitivity=sensitivity, **INSTRUMENTS)
    assert doctor(Doctor(run=run)) == code
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("R2 0.66 from", "0.84 0.41", "0.33 from position alone", "RankMe 93"):
        assert part in printed
    for part in ("Photometric share 0.55", "of the last block 0.12", "slope 0.50", "correlation 0.80"):
        assert part in printed
    assert cli.main(["doctor", run, "--json"]) == code
    result = json.loads(capsys.readouterr().out)
    assert INSTRUMENTS.items() <= result["numbers"].items()
    assert [sentence for sentence in result["instruments"] if "slope 0.50" in sentence]
    assert str(Run(Path(run)).verdict()).count("RankMe 93") == 1
    assert "93.4" in str(Run(Path(run))), "in the table of a run, too"


def test_a_folder_without_metrics_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: it has no metrics\.jsonl; give the --out folder"):
        doctor(Doctor(run=str(tmp_path)))
    RunFolder(tmp_path).metrics.touch()
    with pytest.raises(UserError, match="is empty; let the run reach its first log line"):
        doctor(Doctor(run=str(tmp_path)))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "Line 1 of"),
        ('{"step": 3}', "hold no number `loss`"),
    ],
)
def test_damaged_metrics_are_named(tmp_path: Path, line: str, sentence: str) -> None:
    RunFolder(tmp_path).metrics.write_text(line + "\n")
    with pytest.raises(UserError, match=sentence):
        doctor(Doctor(run=str(tmp_path)))
