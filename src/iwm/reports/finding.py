"""A finding, one comparison with its controls, and what is read of the results that it is made from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwm.run_folder import EARLIER, RunFolder, is_remote, weights_of
from iwm.runtime.bounds import finite
from iwm.runtime.errors import UserError

Result = dict[str, Any]
OF_EARLIER = " (of earlier weights)"
"""Behind the name of what was measured on other weights than the run now holds."""


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
    earlier: bool = False
    """Measured on earlier weights than the run now holds, of which it says nothing."""

    def of_earlier_weights(self) -> "Finding":
        """The same, said to be of earlier weights and without a sign."""
        words = f"Measured on earlier weights than the run now holds, of which it says nothing. {self.sentence}"
        return replace(self, title=self.title + OF_EARLIER, good=None, sentence=words, earlier=True)


def number(result: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a result, else None."""
    return finite(result.get(key))


def numbers(result: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """{name: value} of those keys ({key: name}) that the result holds."""
    values = {name: number(result, key) for key, name in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def require_measured(run: str, folder: RunFolder) -> None:
    """Raises UserError for a RUN trained elsewhere, on which nothing has been measured here yet."""
    if is_remote(run) and not folder.eval.exists():
        raise UserError(f"Nothing has been measured on {run} here yet; do it with `iwm world {run} --data S`.")


def verb_of(result: Result) -> str:
    return str(result["file"]).split("-")[0]


def note_of(result: Result) -> str:
    """What is said behind the name of a result: OF_EARLIER, or nothing."""
    return OF_EARLIER if result.get(EARLIER) else ""


def data_of(result: Result) -> str:
    """Name of the data a result was measured on."""
    return str(result.get("data") or Path(str(settings_of(result).get("data") or "")).stem or "unknown data")


def settings_of(result: Result) -> dict[str, Any]:
    """The settings of a result, with its precision, which some results hold beside them."""
    settings, precision = result.get("settings"), result.get("precision")
    beside = {"precision": precision} if isinstance(precision, str) else {}
    return {**beside, **settings} if isinstance(settings, dict) else beside


def groups(results: Iterable[Result], key: Any) -> list[list[Result]]:
    """Results of equal key together, in order of appearance."""
    together: dict[Any, list[Result]] = {}
    for result in results:
        together.setdefault(key(result), []).append(result)
    return list(together.values())


def by_weights(results: Sequence[Result]) -> list[list[Result]]:
    """Results of the same weights together: first those of the weights that the run holds, or else the newest; older
    results, which do not name their weights, count as theirs."""
    newest = sorted((r for r in results if weights_of(r)), key=lambda r: str(r.get("date") or ""), reverse=True)
    order = [weights_of(r) for r in sorted(newest, key=lambda r: bool(r.get(EARLIER)))]
    first = next((weights_of(r) for r in newest if not r.get(EARLIER)), "")
    together: dict[str, list[Result]] = {mark: [] for mark in (first, *order)}
    for result in results:
        together[weights_of(result) or first].append(result)
    return [group for group in together.values() if group]


def plainest(result: Result) -> tuple[bool, int]:
    """Orders results of one question: those with baselines first, then by the length of the name."""
    return not any(key in result for key in ("random_encoder_top1", "random_encoder_miou")), len(result["file"])


def by_seed(results: Sequence[Result]) -> dict[Any, Result]:
    """The first result of every seed."""
    return {result.get("seed"): result for result in reversed(results)}


def join(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
