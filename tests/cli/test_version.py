"""`iwm --version` names release, commit, PyTorch and Python."""

import platform
import subprocess

import pytest
import torch

from iwm import cli
from iwm.cli import version


def test_the_line(capsys):
    assert cli.main(["--version"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("iwm ")
    assert f"torch {torch.__version__.split('+')[0]}" in line
    assert f"Python {platform.python_version()}" in line
    assert line.count("\n") == 1


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with the package in it, of one commit."""
    package = tmp_path / "src" / "iwm"
    package.mkdir(parents=True)
    (package / "file.py").write_text("")
    monkeypatch.setattr(version, "PACKAGE", package)
    monkeypatch.setattr(version, "BUILT_IN", package / "COMMIT")
    return tmp_path


def test_the_commit_of_a_clone_and_whether_files_were_changed(clone):
    assert version.commit() == ""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", "-C", str(clone), *words], check=True)
    head = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert version.commit() == head.stdout[:12]
    (clone / "src" / "iwm" / "file.py").write_text("changed")
    assert version.commit() == f"{head.stdout[:12]}-dirty"


def test_the_commit_that_was_built_in_comes_first(clone):
    (clone / "src" / "iwm" / "COMMIT").write_text("1a2b3c4d5e6f\n")
    assert version.commit() == "1a2b3c4d5e6f"
    assert "(commit 1a2b3c4d5e6f)" in version.text()


def test_without_git_there_is_no_commit(clone, monkeypatch):
    (clone / ".git").mkdir()
    monkeypatch.setenv("PATH", str(clone))
    assert version.commit() == ""
    assert "commit" not in version.text()
