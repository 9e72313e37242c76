"""Settings that were renamed: files of old runs are read for ever, what people type works for one more version.

The table is `iwm.config.RENAMED`. In the version that renames a setting, the old name on the command line or as a
keyword does what the new one does and says so; in later ones it is refused with the new name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from iwm.runtime.console import console
from iwm.runtime.errors import UserError


@dataclass(frozen=True)
class Rename:
    """What an old setting is called now."""

    now: str
    """The new name, with its group."""
    since: str
    """The version that renamed it, MAJOR.MINOR."""
    values: Mapping[Any, Any] = field(default_factory=dict)
    """Old values that have another name too; any other value stays as it is."""

    def value(self, old: Any) -> Any:
        return self.values.get(old, old)


Renames = Mapping[str, Rename]


def in_file(values: Mapping[str, Any], renames: Renames) -> dict[str, Any]:
    """Plain nested settings of any age as they are called today. What has both names keeps the new one's value."""
    upgraded = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for old, rename in renames.items():
        place, _, name = old.rpartition(".")
        group = upgraded.get(place) if place else upgraded
        if isinstance(group, dict) and name in group:
            now_place, _, now_name = rename.now.rpartition(".")
            target = upgraded.setdefault(now_place, {}) if now_place else upgraded
            if not isinstance(target, dict):
                continue  # what is no group is refused by its own name
            target.setdefault(now_name, rename.value(group.pop(name)))
            if not group and place:
                del upgraded[place]
    return upgraded


def in_keywords(keywords: Mapping[str, Any], renames: Renames) -> dict[str, Any]:
    """Keywords of Python with today's names; says which are old. Raises UserError for one of an earlier version."""
    return {_typed(name, renames): renames[name].value(v) if name in renames else v for name, v in keywords.items()}


def in_words(words: Sequence[str], renames: Renames) -> list[str]:
    """Words of a command line with today's flags; says which are old. Raises UserError for one of an earlier version.

    A switch of before, which took no value, gives its value by its form: --optim.freeze-encoder, --optim.no-...
    """
    switches = {old: rename for old, rename in renames.items() if {True, False} & set(rename.values)}
    flags = {_flag(old): (old, None) for old in renames if old not in switches}
    flags |= {_flag(old): (old, True) for old in switches} | {_flag(old, "no-"): (old, False) for old in switches}
    upgraded = []
    for word in words:
        flag, equals, text = word.partition("=")
        if flag not in flags:
            upgraded.append(word)
            continue
        old, value = flags[flag]
        now = _flag(_typed(old, renames))
        if value is not None:
            upgraded += [now, str(renames[old].value(value))]
        else:
            upgraded.append(f"{now}={renames[old].value(text)}" if equals else now)
    return upgraded


def _typed(name: str, renames: Renames) -> str:
    """The name of today of what somebody typed."""
    if name not in renames:
        return name
    rename = renames[name]
    if _numbers(version("iwm")) > _numbers(rename.since):
        raise UserError(f"{name} was renamed in iwm {rename.since}; give {rename.now}.")
    console.print(
        f"[yellow]{name} is called {rename.now} since iwm {rename.since}; the old name works in this version only.",
        soft_wrap=True,
    )
    return rename.now


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _flag(name: str, no: str = "") -> str:
    place, dot, last = name.rpartition(".")
    return f"--{place}{dot}{no}{last.replace('_', '-')}"
