"""`iwm --version`: which iwm, of which commit, with which PyTorch and Python."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
BUILT_IN = PACKAGE / "COMMIT"
"""The commit that a wheel or sdist was built from; setup.py writes it there."""


def text() -> str:
    """One line: iwm 0.1.0 (commit 1a2b3c4), torch 2.15.0, Python 3.11.4."""
    mark = commit()
    words = [f"iwm {_version('iwm')}" + (f" (commit {mark})" if mark else "")]
    return ", ".join([*words, f"torch {_version('torch')}", f"Python {platform.python_version()}"])


def commit() -> str:
    """The commit this code is of, with -dirty where files were changed since; empty where nobody knows."""
    if BUILT_IN.is_file():
        return BUILT_IN.read_text().strip()
    clone = PACKAGE.parent.parent
    if not (clone / ".git").exists():
        return ""
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
