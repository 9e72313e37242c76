"""What lies in the folder of a run, by name, and how it is read."""

import json
from pathlib import Path
from typing import Any

from iwm.runtime.errors import UserError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line torn by a crash is left out. Raises UserError for any other damage."""
    # What follows the last newline is torn, or empty. Bytes that are no text spoil their own line only.
    *lines, _torn = path.read_text(errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {path} is damaged; delete that line.") from None
        records.append(record)
    return records
