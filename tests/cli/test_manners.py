"""--json, --quiet and --dry-run do for every verb what they say; a pipe gets neither colours nor bars."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import pictures_file, tiny, trained_on
from PIL import Image

import iwm
from iwm import cli, config, recipe_book, verbs
from iwm.cli import manners
from iwm.runtime.console import console, progress
from iwm.verbs.shared import Manners
from iwm.verbs.world import World

WORLD = ("--images=4", "--bank=8")


@pytest.fixture
def run(trained: Path) -> str:
    return str(trained)


@pytest.fixture
def source(trained: Path) -> str:
    return str(trained.parent / "pictures.npz")


def document(capsys, *argv, code=0):
    """The one JSON document on standard output."""
    assert cli.main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


# ---- words ---------------------------------------------------------------------------------------------------------


def test_they_are_taken_off_wherever_they_stand():
    words = ["--json", "runs/mine", "--data", "x", "--quiet", "--bank", "8"]
    rest, how = manners.take(words, verbs.find("world"))
    assert rest == ["runs/mine", "--data", "x", "--bank", "8"]
    assert how == Manners(json=True, quiet=True)


def test_an_option_of_a_verbs_own_stays_the_verbs():
    @dataclass
    class Push:
        dry_run: bool = False

    verb = verbs.Verb("push", "Push.", Push, lambda o: None)
    assert manners.take(["--dry-run", "--json"], verb) == (["--dry-run"], Manners(json=True))


def test_they_may_stand_before_the_verb(capsys):
    words = ["--json", "--actions", "mine.py:SET", "doctor", "runs/mine"]
    assert manners.verb_first(words) == ["doctor", "runs/mine", "--json", "--actions", "mine.py:SET"]
    assert manners.verb_first(["--quiet", "--help"])[0] == "--help"
    assert {row["recipe"] for row in json.loads(_out(capsys, "--json", "recipes"))} == set(recipe_book.RECIPES)


def _out(capsys, *argv):
    assert cli.main(argv) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "x", "world"], "--data stands before the verb; the verb comes first, as in `iwm VERB --data`"),
        (["--data=x", "world"], "--data stands before the verb"),
        (["--json"], "Which verb? Give it first, as in `iwm VERB --json`"),
    ],
)
def test_any_other_option_before_the_verb_is_refused_with_the_right_mend(words, said, capsys):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


# ---- json ----------------------------------------------------------------------------------------------------------


def test_a_measurement_is_what_its_file_holds(run, source, capsys):
    result = document(capsys, "world", run, "--data", source, *WORLD)
    written = json.loads(Path(result["path"]).read_text())
    assert written == {key: value for key, value in result.items() if key != "path"}
    assert result["mrr"] > 0


def test_the_doctor_still_speaks_in_exit_codes(run, capsys):
    verdict = document(capsys, "doctor", run, code=1)
    assert verdict["healthy"] is False
    assert verdict["findings"]
    assert verdict["instruments"]
    assert {"step", "target_rankme", "action_slope", "action_correlation"} <= verdict["numbers"].keys()


def test_recipes_compare_and_report(run, source, capsys):
    assert {row["recipe"] for row in document(capsys, "recipes")} == set(recipe_book.RECIPES)
    cifar10 = {row["setting"]: row for row in document(capsys, "recipes", "cifar10")}
    assert cifar10["data.image_size"]["value"] == 32
    assert cli.main(["world", run, "--data", source, *WORLD, "--quiet"]) == 0
    capsys.readouterr()
    rows = document(capsys, "compare", run, run)
    assert "mrr" in {row["metric"] for row in rows}
    assert document(capsys, "report", run) == {"path": f"{run}/report.html"}


def test_what_trains_says_where_it_wrote(tmp_path, capsys):
    settings = trained_on(tiny(), source=str(pictures_file(tmp_path / "p.npz")), out=str(tmp_path / "run"))
    config.save(settings, tmp_path / "tiny.yaml")
    result = document(capsys, "pretrain", "--config", str(tmp_path / "tiny.yaml"))
    assert result["path"] == str(tmp_path / "run")
    assert result["metrics"]["step"] == 8


def test_a_complaint_leaves_standard_output_empty(capsys):
    assert cli.main(["doctor", "absent", "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "absent is not a run" in said.err


# ---- the verdict ---------------------------------------------------------------------------------------------------


def test_a_measurement_ends_with_what_it_says_beside_its_controls(run, source, tmp_path, capsys):
    folder = ["--out", str(tmp_path / "results")]
    assert cli.main(["world", run, "--data", source, *WORLD, *folder]) == 0
    lines = re.sub(r"\s+", " ", capsys.readouterr().out.split("Written to")[1])
    assert re.search(r"(follows? the action|BELOW chance): MRR 0\.\d+ against 0\.\d+ for chance", lines)
    assert cli.main(["infer", run, "--data", source, "--images=2", *folder]) == 0
    assert "Written to" in capsys.readouterr().out.splitlines()[-1], "no judge knows it"


# ---- quiet ---------------------------------------------------------------------------------------------------------


def test_quiet_prints_the_result_alone(run, source, capsys):
    assert cli.main(["world", run, "--data", source, *WORLD, "--quiet"]) == 0
    said = capsys.readouterr()
    assert "mrr_shuffled" in said.out
    assert "Written to" not in said.out
    assert said.err == ""


def test_quiet_and_json_print_json_alone(run, source, capsys):
    assert cli.main(["world", run, "--data", source, *WORLD, "--quiet", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["bank"] == 8
    assert said.err == ""


def test_quiet_keeps_warnings_and_afterwards_all_is_loud_again(monkeypatch, capsys):
    def work(self, options):
        console.print("a remark")
        console.print("[yellow]a warning")
        with progress() as bar:
            bar.update(bar.add_task("trains", total=1, note=""), completed=1)

    monkeypatch.setattr(verbs.Verb, "run", work)
    assert cli.main(["compare", "x", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "a warning\n")
    assert cli.main(["compare", "x"]) == 0
    said = capsys.readouterr()
    assert said.out.split("\n")[0] == "a remark"
    assert said.err == "a warning\n"


def test_a_results_table_holds_no_warning_that_was_printed(run, source, tmp_path, capsys):
    """A search over a source with a broken image: the warning goes to standard error, once."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (16, 16), "teal" if name == "a.png" else "red").save(folder / name)
    (folder / "d.png").write_bytes(b"broken")
    words = ["search", run, str(folder), "--like", str(folder / "a.png")]
    for how in ([], ["--quiet"], ["--json"]):
        assert cli.main([*words, *how]) == 0
        said = capsys.readouterr()
        assert "not searched" not in said.out
        assert said.err.count("1 image of the source was not searched") == 1
    text = str(iwm.search(run, str(folder), like=str(folder / "a.png"), out=str(tmp_path / "found")))
    assert "3 images searched" in text
    assert "not searched" not in text


def test_a_plain_dictionary_is_printed_as_a_table(monkeypatch, capsys):
    value = {"repository": "me/photos", "url": "", "private": True, "files": {"README.md": 4134}}
    monkeypatch.setattr(verbs.Verb, "run", lambda self, options: value)
    assert cli.main(["push", "x", "me/photos", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "{" not in said
    assert re.search(r"repository\W+me/photos", said)
    assert re.search(r"README.md\W+4,134", said)
    assert "url" not in said


# ---- dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_costs_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = str(pictures_file(tmp_path / "p.npz"))
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    plan = document(capsys, "pretrain", "demo", "--data.source", source, "--out", "run", "--dry-run")
    assert (plan["images"], plan["steps"], plan["images_per_step"]) == (64, 8, 16)
    assert plan["seconds"] > 0
    assert plan["memory_gb"] > 0
    assert plan["writes"][0] == "run/config.yaml"
    assert cli.main(["pretrain", "demo", "--data.source", source, "--out", "run", "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_what_trains_nothing_has_no_dry_run(capsys):
    assert cli.main(["doctor", "x", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "iwm doctor has no --dry-run" in said
    assert "pretrain" in said


def test_every_plan_exists():
    with_plan = [name for name in verbs.names() if verbs.find(name).plan]
    assert set(with_plan) >= {"demo", "pretrain", "sweep", "finetune", "efficiency", "multitask", "segment"}
    for name in with_plan:
        assert callable(verbs._function(verbs.find(name).plan))


# ---- pipes and terminals -------------------------------------------------------------------------------------------

BAR = """
from iwm.cli import main
from iwm.runtime.console import console, progress
from iwm import verbs
def work(self, options):
    console.print("[green]healthy[/] [bold]word")
    with progress("steps") as bar:
        bar.update(bar.add_task("trains", total=3, note="loss 0.5"), completed=3)
verbs.Verb.run = work
main(["doctor", "x"])
main(["doctor", "--help"])
"""
COLOUR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|9[0-7])(?:;[\d;]*)?m")


def test_a_pipe_gets_neither_colours_nor_bars():
    said = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in said
    assert "\u2501" not in said
    assert "trains 3/3 steps loss 0.5" in said


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_colour", [False, True])
def test_a_terminal_gets_colours_unless_no_color_is_set(no_colour):
    import pty

    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    environment = {**kept, "TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_colour else {})}
    with subprocess.Popen([sys.executable, "-c", BAR], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            said += part
    os.close(ours)
    text = said.decode()
    assert "\u2501" in text
    assert bool(COLOUR.search(text)) is not no_colour
    assert "usage: iwm doctor" in re.sub(r"\x1b\[[\d;]*m", "", text)


def test_documents_are_json_whatever_the_result(tmp_path):
    assert manners.document(tmp_path) == {"path": str(tmp_path)}
    assert manners.document({"a": (1, 2)}) == {"a": [1, 2]}
    assert manners.document(None) is None
    assert manners.document(World(run="r", data="d"))["run"] == "r"
