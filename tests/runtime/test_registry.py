from typing import ClassVar

import pytest

from iwm.runtime.errors import UserError
from iwm.runtime.registry import Registry


class Base:
    name: ClassVar[str] = ""


class One(Base):
    name = "one"


class Two(Base):
    name = "two"


def test_a_class_joins_and_is_found():
    table = Registry(Base, "group.setting", "register_base", One)
    assert table.register(Two) is Two
    assert (list(table), table.find("two")) == (["one", "two"], Two)

    class Again(Base):
        name = "two"

    table.register(Again)
    assert table.find("two") is Again, "a notebook's cell may be run twice"


def test_an_unknown_name_is_named_with_its_neighbour_and_the_hook():
    table = Registry(Base, "group.setting", "register_base", One)
    with pytest.raises(UserError, match=r"group\.setting is 'ome'; did you mean 'one'\?.*iwm\.register_base\(CLASS\)"):
        table.find("ome")
    with pytest.raises(UserError, match=r"group\.setting is 'xyz'; known are: one\."):
        table.find("xyz")


@pytest.mark.parametrize(
    ("own", "sentence"),
    [(int, "inherits from iwm.Base"), (Base, "has no name"), (One, "'one' is a built-in group.setting")],
)
def test_what_cannot_join_is_refused(own, sentence):
    with pytest.raises(UserError, match=sentence):
        Registry(Base, "group.setting", "register_base", One).register(own)
