"""The options read from the fields are those that the command line has."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional

from iwm import config, recipe_book, verbs
from iwm.cli import sentences
from iwm.runtime.options import REQUIRED, docstrings, options, type_name, typed
from iwm.verbs.shared import manners_of


@pytest.mark.parametrize("name", verbs.names())
def test_flags_and_sentences_are_those_of_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = verbs.find(name)
    with pytest.raises(SystemExit):
        sentences.parse(verb.options, ["--help"], verb, config.Config() if name == "pretrain" else None)
    page = capsys.readouterr().out
    shown = re.findall(r"^. (--[a-z][\w.-]*)", page, re.MULTILINE)
    known = [
        option.flags[0] for kind in (verb.options, manners_of(verb.plan)) for option in options(kind) if option.flags
    ]
    assert sorted(shown) == sorted(known)
    text = "".join(page.replace("│", " ").split())  # words may be cut at the end of a line
    for option in options(verb.options):
        assert option.sentence, option.name
        assert option.sentence.replace(" ", "") in text, option.name


def test_values_are_those_of_an_object_or_the_defaults() -> None:
    ours = {option.name: option.default for option in options(config.Config, recipe_book.get("cifar10"))}
    assert ours["data.image_size"] == 32
    assert {option.name: option.default for option in options(config.Config)}["data.image_size"] == 224


@dataclass
class Base:
    name: Annotated[Positional[str], "a mark"]
    """What it
    is called."""
    kind: Literal["a", "b"] = "a"
    """Of the base."""


@dataclass
class Own(Base):
    kind: Literal["a", "b"] = "b"
    """Of its own."""
    both: bool | None = None


def test_places_choices_and_inherited_words() -> None:
    name, kind, both = options(Own)
    assert (name.placed, name.default, name.sentence) == (True, REQUIRED, "What it is called.")
    assert (kind.flags, kind.choices, kind.sentence) == (("--kind",), ("a", "b"), "Of its own.")
    assert (both.choices, both.sentence, both.switch) == (("None", "True", "False"), "", False)
    assert docstrings(Own)["name"] == "What it is called."


def test_values_and_types_as_a_reader_types_them() -> None:
    assert [typed(value) for value in ((0.3, 1.0), True, 1e-3, None, "", REQUIRED)] == [
        *("0.3 1", "true", "0.001", "None", "", "")
    ]
    kinds = (str, int, bool, tuple[float, float], tuple[int, ...], tuple[float, float] | None, Literal["x", "y"])
    assert [type_name(kind) for kind in kinds] == [
        *("text", "whole number", "switch", "2 numbers", "whole numbers", "2 numbers or None", "x, y")
    ]
