"""Results on disk: `RUN/eval/VERB[-VARIANT]-DATA.json`, one file for every distinct set of settings.

    name = VERB-VARIANT-DATA              where free, or taken by the very same settings
    name = VERB-VARIANT-FINGERPRINT-DATA  where other settings already lie under the plain name

so a repeat replaces only itself and nothing is ever lost. Each file also holds the command, the settings, their
fingerprint, the seed, the machine and the date. Pictures and weights of a result lie beside it under the same name.
"""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from iwm.runtime import devices, files
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.runtime.files import plain

LONGEST = 100
"""Bytes of the data's name in a file's name."""


def run_folder(run: str, out: str = "") -> Path:
    """The local folder under which `eval/` of a RUN lies.

    `out` where given; a run folder itself; the run folder of exported weights (its `model/`, or a file in it); for
    what is no local folder (hf-hub:, timm:) `./iwm-eval/NAME`. Raises UserError when a local RUN does not exist.
    """
    if out:
        return Path(out).expanduser()
    if is_remote(run):
        return Path("iwm-eval") / plain_name(run.split(",")[0])
    path = Path(run).expanduser()
    if not path.exists():
        raise UserError(f"There is no run at {run}; give the --out folder of an `iwm pretrain`.")
    if path.is_file():
        path = path.parent
    # RUN/model names the run as well as RUN does: their results belong together.
    is_model = path.resolve().name == "model" and (path.resolve().parent / "config.yaml").is_file()
    return path.resolve().parent if is_model else path


def is_remote(run: str) -> bool:
    """Whether RUN is a name (hf-hub:, timm:) and no place on this disk."""
    return run.startswith(("hf-hub:", "timm:"))


def run_identity(run: str, out: str) -> str:
    """What tells results of several RUNs in one folder apart: empty where the folder is the run's own."""
    if is_remote(run):
        return run
    return str(Path(run).expanduser().resolve()) if out else ""


def plain_name(text: str) -> str:
    """A name fit for a file on any system: letters, digits, dot, plus, underscore and dash."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hex digest of the settings, whatever the order of their keys."""
    text = json.dumps(plain(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def place(run: str, verb: str, data: str, settings: Mapping[str, Any], *, variant: str = "", out: str = "") -> Path:
    """The JSON file where a result belongs; ask for it when the result is there, right before writing it.

    `variant` is a readable word or two ("linear", "predictor-random"). Raises UserError as `run_folder` does.
    """
    folder = run_folder(run, out) / "eval"
    mark = fingerprint(settings)
    # Disks take 255 bytes, what lies beside adds a few; names cut alike are told apart as other settings are.
    data = plain_name(data).encode()[:LONGEST].decode(errors="ignore")
    for length in (0, 6, 12, 24, len(mark)):
        words = (verb, variant, mark[:length], data)
        path = folder / ("-".join(plain_name(word) for word in words if word) + ".json")
        if not path.exists() or read_result(path).get("fingerprint") == mark:
            return path
    raise UserError(f"{path} is damaged; delete it.")


def write(path: Path, payload: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result atomically to the place found for it; returns what was written.

    `settings` holds everything that changes what is computed, the seed among it.
    """
    command = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else []
    content = {
        **payload,
        "command": shlex.join(command),
        "settings": dict(settings),
        "fingerprint": fingerprint(settings),
        "seed": settings.get("seed"),
        "hardware": devices.describe(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = plain(content)
    files.write_text(path, json.dumps(content, indent=1) + "\n")
    return content


def save(
    run: str,
    verb: str,
    data: str,
    payload: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    variant: str = "",
    out: str = "",
) -> Path:
    """`place` and `write` in one, for results without pictures or weights; returns the file."""
    path = place(run, verb, data, settings, variant=variant, out=out)
    write(path, payload, settings)
    return path


def read_result(path: Path) -> dict[str, Any]:
    """A result, or an empty dictionary for what is none (absent, damaged, or somebody else's file)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_results(run: str | Path, out: str = "") -> list[dict[str, Any]]:
    """All results of a RUN in order of their file names, each with its own name under "file" (without .json).

    Damaged files are named on the console and left out.
    """
    folder = run_folder(str(run), out) / "eval"
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_result(path)
        if "fingerprint" in content:
            found.append({"file": path.stem, **content})
        else:
            console.print(f"[yellow]{path} is no readable result and is left out.")
    return found


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A rich table; numbers right-aligned, fractions of 1 with four digits, None as a dash."""
    built = Table(title=title, title_justify="left")
    rows = [list(row) for row in rows]
    for place_, column in enumerate(columns):
        numeric = any(isinstance(row[place_], int | float) for row in rows)
        built.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        built.add_row(*(in_words(value) for value in row))
    return built


def in_words(value: Any) -> str:
    """A cell: None as a dash, whole numbers with separators, other numbers with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def show(title: str, values: Mapping[str, Any], path: Path | None = None) -> None:
    """Print one result as a two-column table, and where it was written."""
    console.print(table(title, ["what", "value"], values.items()))
    if path:
        console.print(f"Written to {path}", soft_wrap=True)
