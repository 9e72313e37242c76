"""Dataclasses of settings and options: to plain dictionaries and back, every name and type checked."""

import contextlib
import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from iwm.runtime.errors import UserError, did_you_mean

T = typing.TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionary of a settings dataclass, tuples as lists (YAML and JSON safe)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def from_dict(kind: type[T], values: dict[Any, Any], where: str = "") -> T:
    """Build a settings dataclass from nested dictionaries, checking names and types.

    A dataclass with a static method `upgraded` is given what that makes of older names. Raises UserError naming the
    unknown or ill-typed setting.
    """
    values = getattr(kind, "upgraded", dict)(values)
    hints = typing.get_type_hints(kind)
    unknown = [name for name in values if name not in hints]
    if unknown:
        raise UserError(f"Unknown setting '{where}{unknown[0]}': {did_you_mean(str(unknown[0]), hints)}")
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise UserError(f"Setting '{where}{name}' must be a group of settings, got {value!r}.")
            built[name] = from_dict(typing.cast(type, hint), value, f"{where}{name}.")
        else:
            built[name] = _checked(hint, value, f"{where}{name}")
    return kind(**built)


def with_changes(kind: type[T], values: Mapping[str, Any], caller: str, base: T | None = None) -> T:
    """Build an options dataclass from keywords: nested fields by dots, or bare where the command line has them bare.

    What is not given is as in `base`, or at its default. Raises UserError naming the caller and the option that is
    unknown, ill-typed or missing.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    defaults = {name: getattr(base, name) if base else default_of(field) for name, field in fields.items()}
    built = _changed(kind, defaults, values, caller)
    missing = [name for name, value in built.items() if value is dataclasses.MISSING]
    if missing:
        raise UserError(f"{caller} needs {missing[0]}; give {missing[0]}=...")
    return kind(**built)


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a dataclass's field; dataclasses.MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _bare(kind: Any) -> dict[str, str]:
    """Names that the command line takes without that of their group, with the field that is the group."""
    hints, annotated = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    names: dict[str, str] = {}
    for group, hint in hints.items():
        if dataclasses.is_dataclass(hint) and any(getattr(one, "name", None) == "" for one in extras(annotated[group])):
            names |= dict.fromkeys([*(field.name for field in dataclasses.fields(hint)), *_bare(hint)], group)
    return names


def _changed(
    kind: Any, now: dict[str, Any], values: Mapping[str, Any], caller: str, prefix: str = ""
) -> dict[str, Any]:
    """The fields `now` with the values worked in."""
    hints, bare = typing.get_type_hints(kind), _bare(kind)
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if head in now and rest and dataclasses.is_dataclass(hints[head]):
            nested.setdefault(head, {})[rest] = value
        elif key in now:
            whole = dataclasses.is_dataclass(hints[key]) and isinstance(value, typing.cast(type, hints[key]))
            now[key] = value if whole else _checked(hints[key], value, key)
        elif head in bare:
            nested.setdefault(bare[head], {})[key] = value
        else:
            known = [f"{prefix}{name}" for name in (*now, *bare)]
            raise UserError(f"{caller} has no option '{prefix}{key}'; {did_you_mean(prefix + key, known)}")
    for name, changes in nested.items():
        inner = {field.name: getattr(now[name], field.name) for field in dataclasses.fields(now[name])}
        within = prefix if name in bare.values() else f"{prefix}{name}."
        now[name] = type(now[name])(**_changed(type(now[name]), inner, changes, caller, within))
    return now


def extras(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as settings hold it. Path("sample") stays one, and is not taken for a word of that name: "./sample"."""
    text = os.fspath(path)
    return text if isinstance(path, str) or os.path.dirname(text) else os.path.join(os.curdir, text)


def with_paths_as_text(options: Any) -> None:
    """Make text of every Path among the fields of a dataclass, frozen or not, in place."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, os.PathLike):
            object.__setattr__(options, field.name, as_text(value))


def _checked(hint: Any, value: Any, name: str) -> Any:
    if hint is str and isinstance(value, os.PathLike):
        return as_text(value)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(
                f"Setting '{name}' is {value!r}; {did_you_mean(str(value), map(str, typing.get_args(hint)))}"
            )
        return value
    if origin is tuple:
        parts = typing.get_args(hint)
        if isinstance(value, list | tuple) and parts[1:] == (...,):
            return tuple(_checked(parts[0], item, name) for item in value)
        if isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(_checked(part, item, name) for part, item in zip(parts, value, strict=True))
    elif origin in (typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        if value is None and type(None) in parts:
            return None
        first, *others = [part for part in parts if part is not type(None)]
        for part in others:
            with contextlib.suppress(UserError):
                return _checked(part, value, name)
        return _checked(first, value, name)
    elif hint is float and isinstance(value, numbers.Real | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError):
            pass
    elif hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # NumPy's, too
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"Setting '{name}' must be {getattr(hint, '__name__', hint)}, got {value!r}.")
