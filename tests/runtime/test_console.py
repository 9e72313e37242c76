"""Metrics that survive a crash, and what people watch meanwhile."""

import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from iwm.run_folder import read_metrics
from iwm.runtime import console, files
from iwm.runtime.errors import UserError
from iwm.runtime.files import plain
from iwm.training.metrics import Metrics


def lines(path: Path, *records: str, end: str = "\n") -> Path:
    path.write_bytes(("\n".join(records) + end).encode(errors="surrogateescape"))
    return path


def test_lines_come_back_as_they_were_written(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    written = [{"step": 2, "loss": 0.5, "note": "two\nlines, \u00e9"}, {"step": 4, "loss": 1e-30, "rankme": None}]
    for number, line in enumerate(written, start=1):
        metrics.write(line)
        assert read_metrics(metrics.path) == written[:number], "on disk at once"
    assert len(metrics.path.read_text().splitlines()) == 2


def test_numbers_that_are_none_are_written_as_json_knows_them(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write({"step": 2, "loss": math.nan, "rankme": torch.tensor(2.5), "worst": [np.float32(-np.inf), 1]})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    json.loads(metrics.path.read_text(), parse_constant=refuse)
    assert read_metrics(metrics.path) == [{"step": 2, "loss": None, "rankme": 2.5, "worst": [None, 1]}]


@pytest.mark.parametrize("torn", ["", '{"step": 6, "lo', '{"step": 6}', "nonsense", "\udcff\udcfe"])
def test_a_last_line_torn_by_a_crash_is_left_out(tmp_path, torn):
    """A line is whole when its newline is there: what comes before it may be half a number."""
    path = lines(tmp_path / "metrics.jsonl", '{"step": 2}', '{"step": 4}', torn, end="")
    assert read_metrics(path) == [{"step": 2}, {"step": 4}]


def test_no_lines_yet(tmp_path):
    assert read_metrics(lines(tmp_path / "metrics.jsonl", "", end="")) == []


@pytest.mark.parametrize("damaged", ["nonsense", "[1, 2]", '{"loss": 1}', '{"step": "4"}', '{"step": 4', "", "\udcff"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_other_damaged_line_is_named(tmp_path, damaged, number):
    whole = ['{"step": 2}', '{"step": 4}', '{"step": 6}']
    whole[number - 1] = damaged
    path = lines(tmp_path / "metrics.jsonl", *whole)
    with pytest.raises(UserError) as caught:
        read_metrics(path)
    assert str(caught.value) == f"Line {number} of {path} is damaged; delete that line."


@pytest.mark.parametrize(("step", "left"), [(0, []), (1, []), (4, [2, 4]), (5, [2, 4]), (99, [2, 4, 6])])
def test_metrics_are_cut_back_to_a_step(tmp_path, step, left):
    path = lines(tmp_path / "metrics.jsonl", *(f'{{"step": {n}, "loss": 0.1}}' for n in (2, 4, 6)), '{"st', end="")
    metrics = Metrics(path)
    metrics.cut_back(step)
    assert read_metrics(path) == [{"step": n, "loss": 0.1} for n in left]
    metrics.write({"step": 8})  # begins a line of its own
    assert [line["step"] for line in read_metrics(path)] == [*left, 8]


def test_cutting_back_what_is_not_there_makes_nothing(tmp_path):
    Metrics(tmp_path / "metrics.jsonl").cut_back(3)
    assert not list(tmp_path.iterdir())


def test_a_crash_while_cutting_back_leaves_every_line(tmp_path, monkeypatch):
    path = lines(tmp_path / "metrics.jsonl", '{"step": 2}', '{"step": 4}')

    def full(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        Metrics(path).cut_back(2)
    assert [line["step"] for line in read_metrics(path)] == [2, 4]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (3, 3),
        (0.1, 0.1),
        (True, True),
        (None, None),
        ("nan", "nan"),
        (math.nan, None),
        (-math.inf, None),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([0.5, np.inf]), [0.5, None]),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(7), 7),
        (torch.tensor([1.5, math.nan], requires_grad=True), [1.5, None]),
        (torch.tensor([True, False]), [True, False]),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (Path("runs") / "mine", "runs/mine"),
        ((1, (2, [3])), [1, [2, [3]]]),
        ({5}, [5]),
        (frozenset({"a"}), ["a"]),
        ({1: {"a": (np.int32(2), Path("b"))}}, {"1": {"a": [2, "b"]}}),
        (OrderedDict(x=np.nan), {"x": None}),
    ],
    ids=repr,
)
def test_plain_values_are_what_json_knows(value, wanted):
    found = plain(value)
    assert found == wanted
    assert type(found) is type(wanted)
    assert json.loads(json.dumps(found, allow_nan=False)) == wanted


def test_progress_away_from_a_terminal_ends_in_one_line_of_all_that_counts(capsys):
    with console.progress("images") as bar:
        task = bar.add_task("encode", total=3, note="")
        bar.update(task, completed=3, note="120 a second")
    said = capsys.readouterr().out.strip()
    assert "\n" not in said
    for word in ("encode", "3/3", "images", "120 a second", "0:00:00"):
        assert word in said
    assert "\u2501" not in said


def test_a_long_name_is_folded_in_a_table_not_cut(capsys):
    """The end of a path is what tells images apart."""
    name = "/".join(["a-rather-long-folder"] * 8) + "/00042.jpg"
    console.console.print(console.table("Images", ["score", "image"], [[0.5, name]]))
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split("│")[2].strip() for line in lines if line.count("│") == 3]
    assert "".join(cells).endswith(name)


NASTY = ("photo [edited].png", "[/b] :cat: [bold]", "\\[x]", "[yellow]x")


def test_names_in_brackets_are_printed_whole(monkeypatch, capsys):
    """rich takes [edited] for markup and leaves it out, and raises an error for [/b]."""
    monkeypatch.setenv("COLUMNS", "120")
    console.console.print(console.table("of " + NASTY[0], ["path"], [[name] for name in NASTY]))
    console.console.print(f"Written to {NASTY[0]}")
    console.warn_once(f"{NASTY[1]} is a class.")
    with console.progress() as bar:
        bar.add_task(NASTY[1], total=1, completed=1, note=NASTY[0])
    printed = capsys.readouterr()
    for name in NASTY:
        assert name in printed.out
    assert "of photo [edited].png" in printed.out
    assert "Written to photo [edited].png" in printed.out
    assert "1/1 steps photo [edited].png" in printed.out
    assert printed.err.strip() == "[/b] :cat: [bold] is a class."


def test_nothing_is_escaped_for_a_markup_that_is_not_read():
    modules = Path(console.__file__).parents[1].rglob("*.py")
    assert not [module for module in modules if "rich.markup" in module.read_text()]
