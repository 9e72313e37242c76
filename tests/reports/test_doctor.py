"""The doctor's verdict as an exit code, with its reasons."""

from pathlib import Path

import pytest
from planted_runs import metrics, plant

from iwm.reports.doctor import doctor
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
