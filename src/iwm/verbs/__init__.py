"""The verbs of `iwm`: what each takes, one sentence on what it does, and where its work lives.

A verb is a module of this package with a docstring (its sentence), OPTIONS (a dataclass), WORK ("module:function",
imported when it is called) and EXAMPLE (a command); PLAN, likewise "module:function", where it trains and can say
beforehand what that costs; RANKS = True where several processes can do it together. The command line fills the
options, Python callers give the same fields as keywords, and the work takes them whole. Nothing here imports PyTorch,
so help and complaints come at once.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tyro.conf import Fixed, Positional

from iwm.runtime import errors, fields, launch
from iwm.runtime.errors import UserError

T = TypeVar("T")
Parse = Callable[..., Any]
"""parse(options class, words, default=None): the options of a command line's words. Raises UserError."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Try it": ("demo", "app"),
    "Train a world model": ("recipes", "pretrain", "sweep"),
    "Measure it": ("doctor", "world", "probe", "efficiency", "compare", "report"),
    "Use it for a task": ("finetune", "multitask", "segment", "predict", "embed", "search"),
    "Look into it": ("imagine", "decoder", "infer", "look", "undo"),
    "Take it elsewhere": ("export", "push"),
    "In your shell": ("completion",),
}
"""The verbs by what one wants to do, in the order of `iwm --help`; those that are not named here come after these."""
ORDER = tuple(name for group in GROUPS.values() for name in group)


@dataclass(frozen=True)
class Verb:
    """One verb of the command line and of the Python face."""

    name: str
    sentence: str
    options: type
    """A dataclass; its fields are the verb's options."""
    work: str | Callable[[Any], Any]
    """The function that takes the options, or "module:function"; a whole number it returns is the exit code."""
    read: Callable[[Sequence[str], Parse], Any] | None = None
    """read(words, parse): the options, where they cannot be parsed in one go."""
    base: Callable[[Mapping[str, Any]], Any] | None = None
    """base(keywords): the options that Python's keywords change, where those are not the defaults."""
    ranks: bool = False
    """Whether several processes, started by torchrun or srun, can do the work together."""
    example: str = ""
    """A command that shows its use."""
    plan: str | Callable[[Any], Mapping[str, Any]] = ""
    """The function that takes the options and says what the work would cost, or "module:function"; empty: none."""

    def run(self, options: Any) -> Any:
        """Import the work and do it. Raises UserError where several processes were started for what one does."""
        if not self.ranks:
            launch.require_one_process(self.name)
        return _function(self.work)(options)

    def estimate(self, options: Any) -> Mapping[str, Any]:
        """What the work would do and cost; nothing is written. Raises UserError where the verb cannot tell."""
        if not self.plan:
            able = ", ".join(name for name in names() if find(name).plan)
            raise UserError(f"iwm {self.name} has no --dry-run; leave it out. Verbs that train have one: {able}.")
        return _function(self.plan)(options)

    @property
    def positions(self) -> tuple[str, ...]:
        """Options that need no name: those that have none on the command line, then those without a default."""
        hints = typing.get_type_hints(self.options, include_extras=True)
        bare = [name for name, hint in hints.items() if Positional[Any].__metadata__[0] in fields.extras(hint)]
        required = [
            field.name for field in dataclasses.fields(self.options) if fields.default_of(field) is dataclasses.MISSING
        ]
        return tuple(dict.fromkeys((*bare, *required)))

    def fill(self, *values: Any, **keywords: Any) -> Any:
        """The options from Python: values for `positions`, keywords by name, those of a group with a dot.

        `fill("runs/mine", data="photos", **{"speed.threads": 1})`. Raises UserError for unknown and ill-typed options.
        """
        names, caller = self.positions, f"iwm.{self.name}"
        if len(values) > len(names):
            raise UserError(
                f"{caller} takes {len(names)} values, not {len(values)}; give the other options by name, see "
                f"iwm {self.name} --help."
            )
        by_position = dict(zip(names, values, strict=False))
        for name in keywords:
            if name in by_position:
                raise UserError(f"{caller} was given '{name}' twice; give it once.")
        options = {**by_position, **keywords}
        return fields.with_changes(self.options, options, caller, self.base(options) if self.base else None)


def without_help(words: Sequence[str]) -> list[str]:
    """The words without the wish for help: what a verb reads a name from, to show the help of that name's defaults."""
    return [word for word in words if word not in ("-h", "--help")]


_REGISTERED: dict[str, Verb] = {}
"""Verbs of the user's own."""


def register(verb: Verb) -> Verb:
    """Add a verb of your own to the command line and to Python. Raises UserError when its name is taken."""
    if verb.name in _modules():
        raise UserError(f"'{verb.name}' is a built-in verb; give yours another name.")
    _REGISTERED[verb.name] = verb
    return verb


def names() -> tuple[str, ...]:
    """Every verb, in the order of `iwm --help`."""
    built_in = _modules()
    ordered = [name for name in ORDER if name in built_in]
    return tuple(dict.fromkeys((*ordered, *built_in, *_REGISTERED)))


def find(name: str) -> Verb:
    """The verb of that name. Raises UserError with the nearest known one."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _modules():
        raise UserError(f"There is no verb '{name}': {errors.did_you_mean(name, names())}")
    module: Any = importlib.import_module(f"iwm.verbs.{name}")
    sentence = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
    own = {part: getattr(module, part) for part in ("read", "base") if hasattr(module, part)}
    facts = {part.lower(): getattr(module, part) for part in ("RANKS", "EXAMPLE", "PLAN") if hasattr(module, part)}
    return Verb(name, sentence, module.OPTIONS, module.WORK, **own, **facts)


def call(name: str, *values: Any, **keywords: Any) -> Any:
    """Do a verb's work from Python, see `Verb.fill`."""
    verb = find(name)
    return verb.run(verb.fill(*values, **keywords))


def from_python(name: str) -> Callable[..., Any]:
    """A verb's work as a function, with its sentence as docstring and its options as signature."""
    verb = find(name)

    def work(*values: Any, **keywords: Any) -> Any:
        return call(name, *values, **keywords)

    work.__name__ = work.__qualname__ = name
    work.__doc__ = (
        f"{verb.sentence}\n\n`iwm {name} --help` describes the options; those of a group have a dot in their name, "
        '**{"speed.threads": 1}.\nRaises UserError for an option that is unknown, missing or ill-typed, and for what '
        "the work refuses."
    )
    work.__signature__ = _signature(verb)
    return work


def _signature(verb: Verb) -> inspect.Signature:
    """The options as parameters: `positions` first, the others by name only."""
    bare, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    hints = typing.get_type_hints(verb.options, include_extras=True)
    changeable = [
        field
        for field in dataclasses.fields(verb.options)
        if Fixed[Any].__metadata__[0] not in fields.extras(hints[field.name])
    ]
    defaults = {field.name: fields.default_of(field) for field in changeable}
    names = dict.fromkeys((*verb.positions, *defaults))
    parameters = [inspect.Parameter(name, bare if name in verb.positions else named) for name in names]
    return inspect.Signature(
        [
            one if defaults[one.name] is dataclasses.MISSING else one.replace(default=defaults[one.name])
            for one in parameters
        ]
    )


def _function(place: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function at "module:function", imported now; a function itself as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "shared"]


def part(options: Any, kind: type[T]) -> dict[str, Any]:
    """The fields that a verb's options have from one of their bases, as a plain dictionary."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(typing.cast(Any, kind))}


def without_option(words: Sequence[str], option: str) -> tuple[list[str], str]:
    """The words without `option VALUE` (or option=VALUE), and the value. Raises UserError when it lacks one."""
    rest, value, waiting = [], "", False
    for word in words:
        if waiting:
            value, waiting = word, False
        elif word == option:
            waiting = True
        elif word.startswith(option + "="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
    if waiting:
        raise UserError(f"{option} needs a value.")
    return rest, value
