"""A finding, one comparison with its controls, and what is read of the results that it is made from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One comparison with its controls, in words and as bars."""

    title: str
    good: bool | None
    """None: it cannot be told yet."""
    sentence: str
    """Each paragraph on a line."""
    bars: tuple[tuple[str, float], ...] = ()
    """(what, value from 0 to 1), ours first."""


def number(result: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a result, else None."""
    value = result.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def numbers(result: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """{name: value} of those keys ({key: name}) that the result holds."""
    values = {name: number(result, key) for key, name in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def verb_of(result: Result) -> str:
    return str(result["file"]).split("-")[0]


def data_of(result: Result) -> str:
    """Name of the data a result was measured on."""
    return str(result.get("data") or Path(str(settings_of(result).get("data") or "")).stem or "unknown data")


def settings_of(result: Result) -> dict[str, Any]:
    settings = result.get("settings")
    return settings if isinstance(settings, dict) else {}


def join(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
