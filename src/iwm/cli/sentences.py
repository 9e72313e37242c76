"""The command line's complaints as sentences: what was typed, what is wrong with it, how to mend it."""

import contextlib
import dataclasses
import io
import os
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar, cast

import tyro
from typing_extensions import Doc
from tyro.conf import arg

from iwm.runtime.errors import UserError
from iwm.runtime.options import docstrings, options
from iwm.verbs import Verb, without_help
from iwm.verbs.shared import manners_of

T = TypeVar("T")

MISFITS = {
    r"Error parsing (?P<option>\S+): invalid literal for int\(\) with base 10: '(?P<value>.*)'": "a whole number",
    r"Error parsing (?P<option>\S+): could not convert string to float: '(?P<value>.*)'": "a number",
    r"Error parsing (?P<option>\S+): Could not parse arguments \['(?P<value>.*)'\] into tuple type .*": "numbers",
    r"invalid choice '(?P<value>.*)' for argument '(?P<option>\S+)'\. Expected one of \((?P<choices>.*)\)": "",
}
"""Complaints about a value, and what to give; empty: one of the `choices`."""


def parse(kind: type[T], words: Sequence[str], verb: Verb, default: T | None = None) -> T:
    """Options from the words of a command line. Raises UserError: tyro's boxes become one sentence.

    `--help` prints tyro's page and exits.
    """
    name: dict[str, Any] = {"default": cast(Any, default), "prog": f"iwm {verb.name}"}
    if without_help(words) != list(words):
        _print_help(kind, verb, default)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return cast(T, tyro.cli(kind, args=list(words), **name))
    except SystemExit:
        raise UserError(sentence(complaint.getvalue(), verb.name)) from None


def _document(kind: type) -> None:
    """Give tyro the text of every field on one line; the text it finds itself keeps the line breaks of the source."""
    sentences = docstrings(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(plain):
            _document(cast(type, plain))
        if name in sentences:
            kind.__annotations__[name] = Annotated[hint, Doc(sentences[name])]


def _print_help(kind: type, verb: Verb, default: Any) -> NoReturn:
    """Print tyro's page of a verb's options and those of all verbs, with the verb's example, and exit."""
    own = (default,) if default is not None else ()
    of_all = manners_of(verb.plan)
    _document(kind)
    _document(of_all)
    parts = [
        ("of_verb", Annotated[kind, arg(name="")], *own),
        ("of_all", Annotated[of_all, arg(name="")], of_all()),
    ]
    whole = dataclasses.make_dataclass("Whole", parts)
    example = f"\n\nFor example:\n  {verb.example}" if verb.example else ""
    page = io.StringIO()
    plain = contextlib.redirect_stdout(page) if os.environ.get("NO_COLOR") else contextlib.nullcontext()
    with plain, contextlib.suppress(SystemExit):  # tyro knows no NO_COLOR, but prints no colours where no terminal is
        tyro.cli(whole, args=["--help"], prog=f"iwm {verb.name}", description=f"{verb.sentence}{example}")
    print(page.getvalue(), end="")
    raise SystemExit(0)


def sentence(box: str, verb: str) -> str:
    """tyro's boxed complaint as one sentence with the nearest known option."""
    paragraphs = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:  # without colours and the box's title
        text = line.strip(" │\t")
        if re.fullmatch(r"[-─╭╮╰╯ ]{3,}", text):
            paragraphs.append("")
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
    first = next((part for part in paragraphs if part), "The options could not be read")
    first = first.split("Got errors:")[0].strip()  # of a choice of types: why each of them does not fit
    if misfit := _misfit(first.rstrip(". ")):
        return misfit
    near = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", " ".join(paragraphs))
    mend = f"did you mean {near.group(1)}?" if near else f"see iwm {verb} --help."
    return f"{first.rstrip('. ')}; {mend}"


def _misfit(complaint: str) -> str:
    """What to give in place of a value that does not fit an option, of Python's or tyro's words; empty: of others."""
    for pattern, mend in MISFITS.items():
        if match := re.fullmatch(pattern, complaint):
            parts = match.groupdict()
            value = parts["value"].replace("', '", " ")
            words = sorted(parts.get("choices", "").replace("'", "").split(", "))  # tyro's order is not always the same
            choices = " or ".join(", ".join(words).rsplit(", ", 1))
            return f"{parts['option']} is '{value}'; give {mend or choices}."
    return ""


def out_of_memory(verb: Verb | None) -> str:
    """What to lower so that a verb needs less memory, by the names of its own options."""
    typed = [one.flags[0] for one in options(verb.options) if one.flags] if verb else []
    names = [flag.removeprefix("--").replace("-", "_") for flag in typed]
    batch = next((name for name in names if name.split(".")[-1] == "batch_size"), "")
    if "optim.accumulate" in names:
        parts = "keep it and raise optim.accumulate, so that each part is smaller"
        return f"Out of memory: lower {batch}, or {parts}."
    smaller = [name for name in (batch, "bank", "images", "size") if name in names]
    if smaller:
        return f"Out of memory: lower {' or '.join('--' + name.replace('_', '-') for name in smaller[:2])}."
    return "Out of memory: end other programs, or take a machine with more memory."
