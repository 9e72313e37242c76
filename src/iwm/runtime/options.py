"""The options of a dataclass as the command line has them, read from its fields: for completion, reference and tables.

Flags, values and sentences are those that tyro makes of the same fields; a test holds both against each other.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Fixed, FlagCreatePairsOff, Positional

from iwm.runtime.fields import default_of, extras

ONE_WAY = typing.cast(Any, FlagCreatePairsOff[bool]).__metadata__[0]
"""The mark of a switch that has no --no-SWITCH."""
REQUIRED = dataclasses.MISSING
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """One option."""

    name: str
    """Its field with the groups before it, "data.source": its name in Python and in a config.yaml."""
    flags: tuple[str, ...]
    """What the command line calls it: --data.source; both ways of a switch; none of what is given by its place."""
    kind: Any
    """Its type, without marks."""
    default: Any
    """REQUIRED where it has none."""
    sentence: str
    """Its docstring on one line."""

    @property
    def placed(self) -> bool:
        """Whether its place gives it, not its name."""
        return not self.flags

    @property
    def switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """Its values where they are few; none where they are not."""
        return _choices(self.kind)


def options(kind: type, default: Any = None, prefix: str = "", bare: str = "") -> list[Option]:
    """The options of a dataclass in the order of help; those of `default`, an object of that class, where given.

    `prefix` stands before every name, `bare` before every flag. What cannot be changed on the command line is left out.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    sentences = docstrings(kind)
    collected: list[Option] = []
    for field in dataclasses.fields(kind):
        marks = extras(hints[field.name])
        if Fixed[Any].__metadata__[0] in marks:
            continue
        plain = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        value = getattr(default, field.name) if default is not None else default_of(field)
        name, flag = f"{prefix}{field.name}", f"{bare}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(plain):
            unnamed = any(getattr(mark, "name", None) == "" for mark in marks)
            within = bare if unnamed else f"{flag}."
            inner = None if value is REQUIRED else value
            collected += options(typing.cast(type, plain), inner, f"{name}.", within)
            continue
        flags = () if Positional[Any].__metadata__[0] in marks else (f"--{flag}",)
        if plain is bool and ONE_WAY not in marks:
            flags += (f"--{bare}no-{field.name.replace('_', '-')}",)
        collected.append(Option(name, flags, plain, value, sentences.get(field.name, "")))
    return collected


@functools.cache
def docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of its bases, on one line; of two, that of the nearer class."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one) or not hasattr(sys.modules.get(one.__module__), "__file__"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        except (OSError, TypeError):  # a class without a file: one typed in a session
            continue
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    texts[field.target.id] = " ".join(value.value.split())
    return texts


def typed(value: Any) -> str:
    """A value as the command line takes it: 0.3 1.0 for a pair, true or false for a switch."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(typed(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is REQUIRED else str(value)


def type_name(kind: Any) -> str:
    """A type in a reader's words: text, whole number, number, one of its choices, several of them."""
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    names = {str: "text", int: "whole number", float: "number", bool: "switch", type(None): "None"}
    if plain in names:
        return names[plain]
    origin, parts = typing.get_origin(plain), typing.get_args(plain)
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        if parts[1:] == (...,):
            return f"{type_name(parts[0])}s" if type_name(parts[0]) != "text" else "texts"
        return f"{len(parts)} {type_name(parts[0])}s"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in parts)
    return getattr(plain, "__name__", str(plain))


def _choices(kind: Any) -> tuple[str, ...]:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return tuple(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        if bool in parts and type(None) in parts:
            return ("None", "True", "False")
        return tuple(choice for part in parts for choice in _choices(part))
    return ()
