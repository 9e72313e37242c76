"""Results on disk: `RUN/eval/VERB[-VARIANT]-DATA.json`, one file for every distinct set of settings.

    name = VERB-VARIANT-DATA              where free, or taken by the very same settings
    name = VERB-VARIANT-FINGERPRINT-DATA  where other settings already lie under the plain name

so a repeat replaces only itself and nothing is ever lost. Each file also holds the command, the settings, their
fingerprint, the seed, the machine and the date. Pictures and weights of a result lie beside it under the same name.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iwm.run_folder import is_remote, plain_name, read_result, run_folder
from iwm.runtime import devices, files
from iwm.runtime.errors import UserError
from iwm.runtime.files import plain

LONGEST = 100
"""Bytes of the data's name in a file's name."""


def run_identity(run: str, out: str) -> str:
    """What tells results of several RUNs in one folder apart: empty where the folder is the run's own."""
    if is_remote(run):
        return run
    return str(Path(run).expanduser().resolve()) if out else ""


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
