"""The command line's complaints as sentences: what was typed, what is wrong with it, how to mend it."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import tyro

from iwm.runtime import fields
from iwm.runtime.errors import UserError
from iwm.verbs import Verb

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], verb: Verb, default: T | None = None) -> T:
    """Options from the words of a command line. Raises UserError: tyro's boxes become one sentence.

    `--help` prints tyro's page and exits.
    """
    name: dict[str, Any] = {"default": cast(Any, default), "prog": f"iwm {verb.name}"}
    if "--help" in words or "-h" in words:
        tyro.cli(kind, args=["--help"], description=verb.sentence, **name)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return cast(T, tyro.cli(kind, args=list(words), **name))
    except SystemExit:
        raise UserError(sentence(complaint.getvalue(), verb.name)) from None


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
    near = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", " ".join(paragraphs))
    mend = f"did you mean {near.group(1)}?" if near else f"see iwm {verb} --help."
    return f"{first.rstrip('. ')}; {mend}"


def out_of_memory(verb: Verb | None) -> str:
    """What to lower so that a verb needs less memory, by the names of its own options."""
    names = fields.typed_names(verb.options) if verb else []
    batch = next((name for name in names if name.split(".")[-1] == "batch_size"), "")
    if "optim.accumulate" in names:
        parts = "keep it and raise optim.accumulate, so that each part is smaller"
        return f"Out of memory: lower {batch}, or {parts}."
    smaller = [name for name in (batch, "bank", "images", "size") if name in names]
    if smaller:
        return f"Out of memory: lower {' or '.join('--' + name.replace('_', '-') for name in smaller[:2])}."
    return "Out of memory: end other programs, or take a machine with more memory."
