"""`iwm --help` shows every verb under what one wants to do, with an example, and the exit codes are documented once."""

import re
from pathlib import Path

import pytest

from iwm import cli, verbs
from iwm.cli import help

PAGE = Path(__file__).parent.parent.parent / "docs" / "commands.md"


def test_every_verb_stands_in_one_group_with_its_example(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in verbs.names():
        assert len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 1
        assert f"$ {verbs.find(name).example}" in text
    assert "Others" not in text
    for group in verbs.GROUPS:
        assert f"\n{group}\n" in text
    for flag in ("--json", "--quiet", "--dry-run", "--actions"):
        assert f"\n  {flag} " in text


def test_a_verb_of_the_users_own_is_listed_too(monkeypatch):
    monkeypatch.setitem(verbs._REGISTERED, "count", verbs.Verb("count", "Count words.", int, int))
    assert "\nOthers\n  count       Count words.\n" in help.overview()


@pytest.mark.parametrize("name", verbs.names())
def test_help_of_a_verb_begins_with_its_sentence_and_example(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    page = capsys.readouterr().out
    assert "STR" not in re.sub(r"--[\w-]+ STR", "", page.splitlines()[0]), "a place without a name"
    words = " ".join(page.split())
    assert f"{verbs.find(name).sentence} For example: {verbs.find(name).example}" in words


def test_the_exit_codes_of_the_page_are_these():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == help.EXITS
