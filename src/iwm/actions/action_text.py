"""An action as people type it, `brightness=0.3,hue=-0.05`, checked against what the space and its training say.

What no image can be is refused: a factor of an untouched image, 1, falls no further than to 0 (the least of its range,
where that is lower). What training never drew is allowed, for a model may extrapolate, and said in a sentence.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from iwm.actions.action_space import ActionSpace
from iwm.actions.transformation import Transformation
from iwm.runtime.console import console
from iwm.runtime.errors import UserError

SLACK = 1e-6
"""Of the range: numbers are typed as decimals."""


def parse_action(text: str, space: ActionSpace) -> Float[Tensor, " k"]:
    """The action of "brightness=0.3,hue=-0.05" on an untouched image; prints a warning where training drew none of
    that size.

    Raises UserError for what is no number by name, what the space does not know, and what no image can be.
    """
    changes = _parts(text)
    action = space.encode(**changes)
    require_possible(space, changes)
    for sentence in beyond_training(space, changes):
        console.print(f"[yellow]{sentence}", soft_wrap=True)
    return action


def _parts(text: str) -> dict[str, float]:
    """{"brightness": 0.3, "hue": -0.05} of "brightness=0.3,hue=-0.05". Raises UserError."""
    changes: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name:
            raise UserError(f"'{part.strip()}' is no change; give NAME=NUMBER, as in brightness=0.3,hue=-0.05.")
        if name in changes:
            raise UserError(f"Action '{name}' is given twice; give it once.")
        try:
            changes[name] = float(value)
        except ValueError:
            raise UserError(f"Action '{name}' is '{value}'; give a number.") from None
    return changes


def require_possible(space: ActionSpace, changes: Mapping[str, float]) -> None:
    """Raises UserError for a change of an untouched image after which it would be none: a factor below 0; and for one
    of what has an empty range, which no action can say."""
    for t, change in _graded(space, changes):
        if not t.range:
            raise UserError(f"This model was trained without changes of {t.name}; leave '{t.name}' out.")
        least = t.floor - t.neutral
        if t.both and change < least - SLACK * t.range:
            raise UserError(
                f"Action '{t.name}' is {change:g}, but a factor of {t.neutral:g} cannot fall below {t.floor:g}; give "
                f"{least:g} or more."
            )


def beyond_training(space: ActionSpace, changes: Mapping[str, float]) -> list[str]:
    """A sentence for every change that is larger than any that training drew, or that it never drew."""
    sentences = []
    for t, change in _graded(space, changes):
        low, high = t.drawn_changes
        if not low - SLACK * t.range <= change <= high + SLACK * t.range:
            sentences.append(
                f"Training drew changes of {t.name} from {low:g} to {high:g}; {change:g} lies outside, so the "
                "prediction is a guess."
            )
    for t in space.transformations:
        if changes.get(t.name) and not t.probability:
            sentences.append(f"Training never drew {t.name}, so the prediction is a guess.")
    return sentences


def _graded(space: ActionSpace, changes: Mapping[str, float]) -> list[tuple[Transformation, float]]:
    known = {t.name: t for t in space.transformations if t.graded}
    return [(known[name], change) for name, change in changes.items() if name in known and change]
