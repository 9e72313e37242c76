"""Build the sdist, the wheel from it, and use the wheel as a new user would: a fresh environment, an empty folder.

    python tools/check_package.py            dependencies are those of the environment that runs this
    python tools/check_package.py --install  dependencies are installed too, from the registry: minutes
    python tools/check_package.py --out dist keep what was built

Asserts that both files are under 14 MB, that nothing of the repository is needed, and that `iwm imagine demo photo.png`
writes its result and a picture.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 14_000_000
"""Bytes of a file that is released."""
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
LEFT_OUT = shutil.ignore_patterns(".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "site")
"""What a working tree holds beside what is released; .git tells the commit."""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, without this environment's own paths."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(one) for one in command], cwd=cwd, env=mine, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """The sdist of the working tree, and the wheel of that sdist: what the sdist lacks, the wheel lacks too."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shutil.copytree(ROOT, place / "tree", ignore=LEFT_OUT, symlinks=True)
        run(sys.executable, "-c", BUILD, "build_sdist", out, cwd=place / "tree")
        (sdist,) = out.glob("iwm-*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (unpacked,) = place.glob("iwm-*")
        run(sys.executable, "-c", BUILD, "build_wheel", out, cwd=unpacked)
        (wheel,) = out.glob("iwm-*.whl")
    for path in (sdist, wheel):
        size = path.stat().st_size
        print(f"{path.name}: {size / 1e6:.2f} MB")
        assert size < MOST, f"{path.name} has {size:,} bytes, the most are {MOST:,}"
    return sdist, wheel


def use(wheel: Path, install: bool) -> None:
    """Install the wheel into a fresh environment and imagine a change of a photo from an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        place, since = Path(name), time.perf_counter()
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        dependencies = ()
        if not install:
            site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
            (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
            dependencies = ("--no-deps", "--no-index")
        run(python, "-m", "pip", "install", "--quiet", *dependencies, wheel, cwd=place)
        print(f"installed in {time.perf_counter() - since:.0f} s")
        folder = place / "empty"
        folder.mkdir()
        where = run(python, "-c", "import iwm; print(iwm.__file__)", cwd=folder).strip()
        assert where.startswith(str(place / "venv")), where
        photo = "from PIL import Image; Image.linear_gradient('L').convert('RGB').save('photo.png')"
        run(python, "-c", photo, cwd=folder)
        iwm = python.with_name("iwm")
        print(run(iwm, "--version", cwd=folder).strip())
        began = time.perf_counter()
        result = json.loads(
            run(iwm, "imagine", "demo", "photo.png", "--action", "brightness=0.3", "--json", cwd=folder)
        )
        picture = (folder / result["path"]).with_suffix(".png")
        assert picture.stat().st_size > 10_000, picture
        print(f"iwm imagine demo photo.png: {picture.name} after {time.perf_counter() - began:.0f} s", end=", ")
        print(f"{time.perf_counter() - since:.0f} s from the start of the installation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--install", action="store_true", help="install the dependencies from the registry")
    parser.add_argument("--out", type=Path, help="folder that keeps the sdist and the wheel")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = given.out.resolve() if given.out else Path(name)
        out.mkdir(parents=True, exist_ok=True)
        _, wheel = build(out)
        use(wheel, given.install)


if __name__ == "__main__":
    main()
