"""Bounds of settings and options: they stand beside their field, and one sentence names the value that breaks them.

lr: Annotated[float, AtLeast(0)] = 1e-3
"""

import functools
import math
import re
import typing
from dataclasses import dataclass
from typing import Any

from iwm.runtime.errors import UserError
from iwm.runtime.fields import extras


class Bound:
    """What a number, or every number of a tuple, must satisfy."""

    def mend(self, *values: float) -> str:
        """What to give instead, as the end of a sentence; "" when the values are within bounds. NaN never is."""
        raise NotImplementedError


@dataclass(frozen=True)
class AtLeast(Bound):
    """Finite numbers of `least` or more."""

    least: float

    def mend(self, *values: float) -> str:
        fits = all(self.least <= value < math.inf for value in values)
        return "" if fits else f"give {_numbers('', 'numbers of ', values)}{self.least} or more"


@dataclass(frozen=True)
class Finite(Bound):
    """Finite numbers."""

    def mend(self, *values: float) -> str:
        fits = all(map(math.isfinite, values))
        return "" if fits else f"give {_numbers('a finite number', 'finite numbers', values)}"


@dataclass(frozen=True)
class Fraction(Bound):
    """Numbers from 0 to 1; without 0 (`above_zero`), without 1 (`below_one`)."""

    below_one: bool = False
    above_zero: bool = False

    def mend(self, *values: float) -> str:
        ends: dict[float, bool] = {0: not self.above_zero, 1: not self.below_one}
        fits = all(0 < value < 1 or ends.get(value, False) for value in values)
        lower, upper = "above 0, up" if self.above_zero else "from 0", "below 1" if self.below_one else "1"
        return "" if fits else f"give {_numbers('a number', 'numbers', values)} {lower} to {upper}"


@dataclass(frozen=True)
class Above(Bound):
    """Finite numbers above `limit`."""

    limit: float

    def mend(self, *values: float) -> str:
        fits = all(self.limit < value < math.inf for value in values)
        return "" if fits else f"give {_numbers('a number', 'numbers', values)} above {self.limit}"


@dataclass(frozen=True)
class Seed(Bound):
    """A seed: numpy draws from whole numbers of 63 bits; half of them leave room for those beside it (seed + 1)."""

    def mend(self, *values: float) -> str:
        if any(value < 0 for value in values):
            return "give 0 or more"
        return "" if all(value < 2**62 for value in values) else f"give less than 2**62 ({2**62})"


@dataclass(frozen=True)
class Positives(Bound):
    """One finite number or more, all above 0: the choices of a search."""

    def mend(self, *values: float) -> str:
        fits = values and all(0 < value < math.inf for value in values)
        return "" if fits else "give one number or more, all above 0"


@dataclass(frozen=True)
class Rising(Bound):
    """The smallest and the largest value of a range, both above 0 and finite."""

    def mend(self, *values: float) -> str:
        low, high = values
        return "" if 0 < low <= high < math.inf else "give two positive numbers, the smaller one first"


@dataclass(frozen=True)
class Area(Rising):
    """A range of areas, as fractions of the image."""

    def mend(self, *values: float) -> str:
        low, high = values
        too_large = 0 < low <= high and high > 1
        return "an area is a fraction of the image, give at most 1" if too_large else super().mend(low, high)


@dataclass(frozen=True)
class DeviceName(Bound):
    """auto, or the name of a device in PyTorch: cpu, mps, cuda or cuda:N."""

    def mend(self, *values: Any) -> str:
        fits = all(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(value)) for value in values)
        return "" if fits else "give auto, cpu, mps, cuda or cuda:N"


def finite(value: Any) -> float | None:
    """The value where it is a finite number, so that counts stay whole; else None. True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def check(options: Any, prefix: str = "") -> None:
    """Check the fields of a dataclass against the bounds beside them; None is always allowed.

    Raises UserError naming the first field out of bounds as users type it: "optim.batch_size is 0; ..." with the
    prefix "optim.", "--batch-size 0: ..." with the prefix "--".
    """
    for name, bound in _bounds(type(options)):
        value = getattr(options, name)
        values = value if isinstance(value, tuple | list) else (value,)
        mend = bound.mend(*values) if value is not None else ""
        if mend:
            shown = " ".join(map(str, values)) or "nothing"
            typed = (
                f"{prefix}{name.replace('_', '-')} {shown}:" if prefix[:2] == "--" else f"{prefix}{name} is {shown};"
            )
            raise UserError(f"{typed} {mend}.")


@functools.cache
def _bounds(kind: type) -> list[tuple[str, Bound]]:
    """Field and bound of every bounded field; a field that a subclass defines anew keeps its bounds."""
    hints = [typing.get_type_hints(base, include_extras=True) for base in reversed(kind.__mro__)]
    metadata = [(name, extra) for each in hints for name, hint in each.items() for extra in extras(hint)]
    return list(dict.fromkeys((name, bound) for name, bound in metadata if isinstance(bound, Bound)))


def _numbers(one: str, several: str, values: tuple[float, ...]) -> str:
    return one if len(values) == 1 else several
