"""How every verb behaves: --json, --quiet and --dry-run, taken off the words before a verb reads its own.

--json      standard output holds one JSON document, the result; everything else goes to standard error
--quiet     the result and warnings only; these go to standard error
--dry-run   the verb's PLAN instead of its WORK: what would be done and what it costs
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from iwm import verbs
from iwm.runtime import launch
from iwm.runtime.console import console, hushed, show, tables_returned
from iwm.runtime.errors import UserError
from iwm.runtime.options import options
from iwm.verbs.shared import Manners

SWITCHES = ("json", "quiet", "dry_run")
OF_ALL = ("--json", "--quiet", "--dry-run", "--actions")
"""What every verb takes."""


def verb_first(words: Sequence[str]) -> list[str]:
    """The words with what every verb takes behind the verb, where it was given before it. Raises UserError for any
    other option there, and where no verb follows."""
    rest, before = list(words), []
    while rest and rest[0].startswith("-") and rest[0] not in ("-h", "--help", "--version"):
        name, equals, _ = rest[0].partition("=")
        if name not in OF_ALL:
            raise UserError(f"{name} stands before the verb; the verb comes first, as in `iwm VERB {name}`.")
        count = 2 if name == "--actions" and not equals else 1
        before, rest = [*before, *rest[:count]], rest[count:]
    if before and not rest:
        raise UserError(f"Which verb? Give it first, as in `iwm VERB {' '.join(before)}`; `iwm --help` has them all.")
    return [*rest, *before]


def take(words: Sequence[str], verb: verbs.Verb) -> tuple[list[str], Manners]:
    """The words without those of Manners, and these. An option of the verb's own of such a name stays the verb's."""
    own = {flag for option in options(verb.options) for flag in option.flags}
    flags = {f"--{name.replace('_', '-')}": name for name in SWITCHES}
    flags = {flag: name for flag, name in flags.items() if flag not in own}
    rest = [word for word in words if word not in flags]
    chosen = {flags[word] for word in words if word in flags}
    return rest, Manners(json="json" in chosen, quiet="quiet" in chosen, dry_run="dry_run" in chosen)


def perform(verb: verbs.Verb, chosen: Any, how: Manners) -> int:
    """Do a verb's work, or say what it would cost; returns the exit code. Raises UserError."""
    if not (how.json or how.quiet or how.dry_run):
        value = verb.run(chosen)
        if isinstance(value, Mapping) and "path" in value and launch.place().rank == 0:
            _say_verdict(_result(verb.name, chosen, value))
        return _code(value)
    with _elsewhere(how):
        value = verb.estimate(chosen) if how.dry_run else verb.run(chosen)
        result = dict(value) if how.dry_run else _result(verb.name, chosen, value)
    if launch.place().rank:
        return _code(value)
    if how.json:
        print(json.dumps(document(result), indent=1))
    elif how.dry_run:
        show(f"iwm {verb.name} would do this; nothing was written", _flat(result))
    elif result is not None:
        print(_text(verb.name, result))
    return _code(value)


def _say_verdict(result: Any) -> None:
    """What a result says beside its controls, where a judge knows its verb."""
    from iwm.reports.results import Result

    if isinstance(result, Result) and (words := result.verdict()):
        console.print(words)


def document(result: Any) -> Any:
    """A result as JSON knows it: a file's content with its path, the lines of a table, the fields of an object."""
    from iwm.reports.results import Result, TableResult
    from iwm.reports.run import Run
    from iwm.runtime.files import plain

    if isinstance(result, Result):
        return plain({**result, "path": str(result.path)})
    if isinstance(result, TableResult):
        return plain([dict(row) for row in result])
    if isinstance(result, Run):
        lines = result.metrics
        return plain({"path": str(result.path), "metrics": lines[-1] if lines else None})
    if isinstance(result, Path):
        return {"path": str(result)}
    if hasattr(result, "document"):
        return plain(result.document())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return plain(dataclasses.asdict(result))
    return plain(result)


@contextmanager
def _elsewhere(how: Manners) -> Iterator[None]:
    """Meanwhile what is printed goes to standard error, of a quiet verb warnings alone; results are handed over."""
    with ExitStack() as stack:
        stack.enter_context(tables_returned())
        if how.json or how.quiet:
            stack.enter_context(redirect_stdout(sys.stderr))
        if how.quiet:
            stack.enter_context(hushed())
        yield


def _result(name: str, chosen: Any, value: Any) -> Any:
    from iwm.functions import object_of

    return object_of(name, chosen, value)


def _code(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _text(name: str, result: Any) -> Any:
    """A result as people read it; of a plain dictionary the table, and one for every dictionary in it."""
    from iwm.reports.results import Result
    from iwm.reports.tables import text_of

    if not isinstance(result, Mapping) or isinstance(result, Result):
        return result
    tables, left = [], {f"iwm {name}": result}
    while left:
        title = next(iter(left))
        content = left.pop(title)
        left |= {f"{title}, {key}": value for key, value in content.items() if isinstance(value, Mapping)}
        plain = {key: value for key, value in content.items() if not isinstance(value, Mapping) and value != ""}
        tables.append((title, [["what", "value"], *map(list, _flat(plain).items())]))
    return text_of(tables)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of a table: lists on one line."""
    return {key: ", ".join(map(str, item)) if isinstance(item, list | tuple) else item for key, item in values.items()}
