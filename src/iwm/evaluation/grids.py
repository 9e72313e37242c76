"""Searches over a grid of settings: a best value at an end of its grid may not be the best there is, and says so.

Where trying one more is cheap, as with the strength of a penalty, the search goes on beyond the end
(`iwm.runtime.algebra.search`). A result holds under "at_grid_end" (or PREFIX_at_grid_end, of a control) every such
setting, as in {"lr": "highest of 0.001, 0.003"}; it is empty where the best lies between others. A grid of two has
nothing but ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from iwm.runtime.console import warn_once

T = TypeVar("T", bound=float)
KEY = "at_grid_end"


def best_of(tried: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first row with the highest accuracy on the tenth."""
    return max(tried, key=lambda row: row["tenth_top1"])


def untried(grid: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """What is taken where no training image can be held out to choose by: the middle value of every setting of a grid,
    of an even number the lower one. A warning says so, where there would have been a choice."""
    if len(grid) > 1:
        warn_once(
            "The training images are too few to hold some out and choose settings by them, so the middle of every grid "
            "is taken, untried; give two images of a class or more."
        )
    values = {name: sorted({row[name] for row in grid}) for name in grid[0]}
    return {name: each[(len(each) - 1) // 2] for name, each in values.items()}


def grid_ends(choice: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every setting of the choice that is the lowest or highest of what was tried, with all its values; a setting with
    one value was not searched."""
    ends = {}
    for name, best in choice.items():
        values = sorted({row[name] for row in tried if isinstance(row.get(name), int | float)})
        if len(values) > 1 and best in (values[0], values[-1]):
            place = "lowest" if best == values[0] else "highest"
            ends[name] = f"{place} of {', '.join(f'{value:g}' for value in values)}"
    return ends


def sentences(content: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for every search of a result, at whatever depth, that ended at an end of its grid."""
    for where, ends in _searches(content, ()):
        whose = f"{where}: the" if where else "The"
        for name, place in ends.items():
            yield f"{whose} best {name} is the {place}; a better one may lie beyond."


def _searches(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            name = str(key)
            if name.endswith(KEY) and isinstance(part, Mapping):
                prefix = name.removesuffix(KEY).strip("_").replace("_", " ")
                yield ", ".join(filter(None, (*path, prefix))), part
            else:
                yield from _searches(part, (*path, name.replace("_", " ")))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value, start=1):
            name = str(part.get("what", number)) if isinstance(part, Mapping) else str(number)
            yield from _searches(part, (*path, name))
