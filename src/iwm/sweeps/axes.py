"""The cells of a sweep: which settings are varied, and in which order they are run."""

import itertools
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace

from iwm import config
from iwm.config import Config
from iwm.model.conditioning import CONDITIONINGS
from iwm.model.objectives import objective_of
from iwm.run_folder import plain_name
from iwm.runtime import errors
from iwm.runtime.errors import UserError
from iwm.verbs.sweep import Axes

LEVELS: tuple[str, ...] = typing.get_args(typing.get_type_hints(config.Actions)["level"])
OF_ANY_SET = tuple(level for level in LEVELS if level != "strong")
"""Levels of an action set that is not the photometric one."""


@dataclass(frozen=True)
class Cell:
    """One pretraining: its folder's name and all its settings, from which everything else is read."""

    name: str
    settings: Config

    @property
    def predicts(self) -> bool:
        """Whether there is a predictor: a joint embedding has none, whatever its settings say of one."""
        return objective_of(self.settings).predicts

    @property
    def conditioning(self) -> str | None:
        return self.settings.predictor.conditioning if self.predicts else None

    @property
    def difficulty(self) -> str | None:
        """None where views do not differ by an action: crops of a joint embedding, views without photometry."""
        actions = self.settings.actions
        changes = actions.level != "jitter" or actions.jitter_probability > 0
        return actions.level if self.predicts and changes else None

    @property
    def invariance(self) -> float | None:
        """Weight of the last block's invariance term; None where there can be none."""
        objective = objective_of(self.settings)
        return self.settings.objective.invariance_weight if objective.invariant_block else None

    @property
    def predictor(self) -> str | None:
        return size_of(self.settings.predictor) if self.predicts else None


def size_of(predictor: config.Predictor) -> str:
    """DEPTHxWIDTH, the paper's IWM(depth, width)."""
    return f"{predictor.depth}x{predictor.width}"


def choices(text: str, known: Sequence[str], option: str) -> list[str]:
    """The words of a comma-separated list. Raises UserError for an unknown one and for none at all."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in known:
            raise UserError(f"{option} {word}: there is no such thing; {errors.did_you_mean(word, known)}")
    if not words:
        raise UserError(f"{option} names nothing; give one or more of {', '.join(known)}.")
    return words


def sizes(text: str, own: config.Predictor) -> list[tuple[int, int]]:
    """(depth, width) of every predictor. Raises UserError for a bad spelling and a width that cannot be built."""
    pairs = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)
        if not match:
            raise UserError(f"--predictors {word} is no size; write DEPTHxWIDTH, for example {size_of(own)}.")
        if int(match[2]) % 4:
            raise UserError(f"--predictors {word}: the width must be a multiple of 4.")
        pairs.append((int(match[1]), int(match[2])))
    return list(dict.fromkeys(pairs or [(own.depth, own.width), (max(1, own.depth // 2), own.width)]))


def weights(text: str, own: float) -> list[float]:
    """The weights of the invariance term. Raises UserError for what is no number from 0 up."""
    numbers = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        try:
            number = float(word)
        except ValueError:
            number = -1.0
        if not 0 <= number < math.inf:
            raise UserError(f"--invariance {word} is no weight; write numbers from 0 up, for example 0,0.3,1.")
        numbers.append(number)
    return list(dict.fromkeys(numbers or [own]))


def cells_of(base: Config, axes: Axes, others: Sequence[Config] = ()) -> list[Cell]:
    """All cells, the ones that say most first: the reference, what differs from it in one thing, the other recipes as
    they are, the rest.

    The reference has the recipe's own conditioning and level where they are among the axes (else the first ones) and
    the first predictor. Raises UserError for what cannot be read, and for a recipe without a predictor to vary.
    """
    objective = objective_of(base)
    if not objective.predicts:
        raise UserError(
            f"Recipe {base.recipe} is {objective.noun} without a predictor to vary; sweep a world model, say cifar10, "
            f"and put it beside with --recipes {base.recipe}."
        )
    predictors = sizes(axes.predictors, base.predictor)
    conditionings = _first(
        choices(axes.conditionings or ",".join(CONDITIONINGS), list(CONDITIONINGS), "--conditionings"),
        base.predictor.conditioning,
    )
    known = LEVELS if base.actions.set == "photometric" else OF_ANY_SET
    levels = _first(choices(axes.levels or ",".join(known), LEVELS, "--levels"), base.actions.level)
    dial = sorted(weights(axes.invariance, base.objective.invariance_weight))
    dial.sort(key=lambda weight: weight != base.objective.invariance_weight)
    ordered: list[tuple[tuple[float, ...], Cell]] = []
    places = itertools.product(*(range(len(values)) for values in (conditionings, levels, predictors, dial)))
    for c, d, p, i in places:
        if axes.design == "tables" and ((c and (d or p or i)) or (i and (d or p))):
            continue
        conditioning, level, (depth, width), weight = conditionings[c], levels[d], predictors[p], dial[i]
        settings = replace(
            base,
            actions=replace(base.actions, level=level),
            predictor=replace(base.predictor, conditioning=conditioning, depth=depth, width=width),
            objective=replace(base.objective, invariance_weight=weight),
        )
        order = (sum(bool(place) for place in (c, d, p, i)), c + d + p + i, i, p, d)  # ties: the conditioning first
        name = f"{conditioning}-{level}-{depth}x{width}" + (f"-inv{weight:g}" if weight else "")
        ordered.append((order, Cell(name, settings)))
    ordered += [((1.5, place), Cell(plain_name(other.recipe), other)) for place, other in enumerate(others)]
    cells = [cell for _, cell in sorted(ordered, key=lambda pair: pair[0])]
    _require_own_names(cells)
    return cells


def _require_own_names(cells: Sequence[Cell]) -> None:
    """Raises UserError for two cells of one name, which is that of their folder."""
    there: dict[str, Cell] = {}
    for cell in cells:
        other = there.setdefault(cell.name, cell)
        if other is not cell:
            one, two = (_told(each.settings) for each in (other, cell))
            raise UserError(
                f"Two cells of this sweep are called {cell.name} and would share a folder: {one}, and {two}; leave one "
                "out, or give it another name."
            )


def _told(settings: Config) -> str:
    weight = settings.objective.invariance_weight
    return (
        f"recipe {settings.recipe} with {settings.predictor.conditioning}, {settings.actions.level}, predictor "
        f"{size_of(settings.predictor)}, invariance weight {weight!r}"
    )


def _first(words: list[str], reference: str) -> list[str]:
    return sorted(words, key=lambda word: word != reference)
