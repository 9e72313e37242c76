"""The sliders of the page: one for every action that the model was trained with, in raw units."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.transformation import Transformation
from iwm.model.action_search import bounds, flag_choices
from iwm.runtime.bounds import finite
from iwm.runtime.errors import UserError

STEPS = 40
"""Steps of a graded slider over its range."""


@dataclass(frozen=True)
class Slider:
    """One action: what its value may be; 0 leaves the image as it is."""

    name: str
    label: str
    hint: str
    low: float
    high: float
    step: float
    graded: bool

    @property
    def spec(self) -> dict[str, Any]:
        return asdict(self)


def sliders_of(space: ActionSpace) -> list[Slider]:
    """A slider for every action that training asked of the model, in the order of the space."""
    low, high = bounds(space)
    choices = flag_choices(space)
    sliders = []
    for place, t in enumerate(space.transformations):
        if t.graded and low[place] < high[place]:
            least, most = float(low[place]) * t.range, float(high[place]) * t.range
            if t.both:  # from an untouched image only what lies in the range can be reached
                least, most = t.low - t.neutral, t.high - t.neutral
            step = _rounded_step(t.range / STEPS)
            sliders.append(Slider(t.name, _label(t), _hint(t), round(least, 6), round(most, 6), step, True))
        elif not t.graded and bool(choices[:, place].any()):
            least = float(choices[:, place].min())
            sliders.append(Slider(t.name, _label(t), _hint(t), least, 1.0, 1.0, False))
    return sliders


def _rounded_step(step: float) -> float:
    """The nearest lower of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return round(max(factor * power for factor in (1, 2, 5) if factor * power <= step * (1 + 1e-9)), 9)


def _label(t: Transformation) -> str:
    name = t.name.replace("_", " ")
    return name if t.both else f"undo {name}"


def _hint(t: Transformation) -> str:
    name = t.name.replace("_", " ")
    if not t.both:
        return f"The model sees the image with {name} and is asked for it without."
    return "" if t.graded else f"1: the model undoes {name}; -1: it adds {name}."


def read_action(space: ActionSpace, changes: Any) -> Float[Tensor, " k"]:
    """The action of the sliders' values by name; what is not named is 0.

    Raises UserError for what is no object of numbers, an unknown name, and a value outside its slider.
    """
    if not isinstance(changes, Mapping):
        raise UserError('An action is an object of numbers by name, as in {"brightness": 0.3}; send one.')
    known = {slider.name: slider for slider in sliders_of(space)}
    values = {}
    for name, value in changes.items():
        if finite(value) is None:
            raise UserError(f"Action '{name}' is {value!r}; give a finite number.")
        slider = known.get(str(name))
        if slider is None:
            values[str(name)] = float(value)  # the space says what it might have been called
        elif not slider.low - 1e-6 <= value <= slider.high + 1e-6:
            raise UserError(f"{name} {value:g} is outside {slider.low:g} to {slider.high:g}; move it inside.")
        else:
            values[slider.name] = float(value)
    return space.encode(**values)


def parts_of(space: ActionSpace, action: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "1 k"]]:
    """What of an action is asked of the source (to be undone), and what of the target (one row, also flags it adds)."""
    adds = torch.tensor([not t.graded and t.both for t in space.transformations]) & (action < 0)
    return torch.where(adds, 0.0, action), action[None]
