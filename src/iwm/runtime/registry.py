"""Classes that a setting names: those of the package, and those that a user registers."""

import difflib
from typing import Generic, TypeVar

from iwm.runtime.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, type[T]], Generic[T]):
    """The classes by name, in the order in which tables show them.

    `setting` is the setting that holds the name, `hook` the function of `iwm` that adds a class. Every class states its
    own `name`.
    """

    def __init__(self, base: type[T], setting: str, hook: str, *classes: type[T]) -> None:
        super().__init__({_name_of(each): each for each in classes})
        self.base, self.setting, self.hook = base, setting, hook
        self.built_in = tuple(self)

    def register(self, own: type[T]) -> type[T]:
        """Let the setting name a class of your own, which comes back, so that this is a decorator; one of the same name
        is replaced.

        Raises UserError when it is no class of the right kind, or its name is missing or a built-in one's.
        """
        if not (isinstance(own, type) and issubclass(own, self.base)):
            raise UserError(f"iwm.{self.hook} takes a class that inherits from iwm.{self.base.__name__}, got {own!r}.")
        name = _name_of(own)
        if not name:
            raise UserError(f"{own.__name__} has no name; set `name`, which {self.setting} then takes.")
        if name in self.built_in:
            raise UserError(f"'{name}' is a built-in {self.setting}; give {own.__name__} another name.")
        self[name] = own
        return own

    def find(self, name: str) -> type[T]:
        """The class of this name. Raises UserError with the nearest known name, and with how to add one."""
        if name not in self:
            typo = difflib.get_close_matches(name, self, n=1, cutoff=0.75)
            own = f" A class of your own must be registered first: iwm.{self.hook}(CLASS)."
            raise UserError(f"{self.setting} is '{name}'; {did_you_mean(name, self)}{'' if typo else own}")
        return self[name]


def _name_of(own: type) -> str:
    return getattr(own, "name", "")
