"""Writes the commit that a wheel or sdist is built from into it, for `iwm --version`; the rest is pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
NAME = "iwm/COMMIT"


def commit() -> str:
    """The commit of a clone, with -dirty where files were changed; that of an sdist; else nothing."""
    built_in = ROOT / "src" / NAME
    if built_in.is_file():
        return built_in.read_text()
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def write(folder: Path) -> None:
    """Write the commit into a folder that holds the package."""
    if commit():
        (folder / NAME).write_text(commit())


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a clone knows its commit itself
            write(Path(self.build_lib))


class Sdist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write(Path(base_dir) / "src")


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
