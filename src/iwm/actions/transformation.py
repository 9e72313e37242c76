"""One named change of an image: how it is drawn, applied and told to the predictor. Yours are read from a file.

a = (w(y) - w(x)) / (high - low)  graded          a = 1 where x carries it  a flag
"""

import difflib
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from iwm.runtime.errors import UserError

Apply = Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, " b"]], Float[Tensor, "b 3 h w"]]


@dataclass(frozen=True, kw_only=True)
class Transformation:
    """One named change of an image, with how it is drawn and how it enters the action."""

    name: str
    apply: Apply
    """apply(images [b, 3, h, w] in [0, 1], value [b]) -> images, one parameter per image, on any device."""
    graded: bool
    """True: its component of the action is a difference; False: a flag."""
    both: bool
    """True: on source and target; False: on the source only."""
    low: float
    high: float
    """Range of the raw parameter (a factor, turns, pixels)."""
    neutral: float
    """Raw parameter of an image it is not applied to."""
    probability: float
    group: str = ""
    """Transformations of one group are applied together or not at all; by default each stands alone."""
    sample: Callable[[np.ndarray], np.ndarray] | None = None
    """Raw parameters from uniform numbers in [0, 1); by default uniform between low and high."""

    @property
    def range(self) -> float:
        return self.high - self.low

    def draw(self, uniform: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        return self.sample(uniform) if self.sample else self.low + uniform * self.range

    @property
    def floor(self) -> float:
        """The least raw parameter that means something: of a factor (neutral above 0) 0, or the least of its range."""
        return min(self.low, 0.0) if self.neutral > 0 else -math.inf

    @property
    def drawn_changes(self) -> tuple[float, float]:
        """The least and the largest change, target less source, that two draws can have."""
        return (-self.range, self.range) if self.both else (self.neutral - self.high, self.neutral - self.low)

    @property
    def strongest(self) -> float:
        """The end of the range that is farther from neutral."""
        return max(self.low, self.high, key=lambda value: abs(value - self.neutral))

    @property
    def undone(self) -> float:
        """The component of the action that undoes it at its strongest."""
        return (self.neutral - self.strongest) / (self.range or 1.0) if self.graded else 1.0


def amount(change: float, whole: float) -> str:
    """A change as text: two digits behind the point, more where the whole range is below a tenth."""
    digits = 2 if whole <= 0 else max(2, 1 - math.floor(math.log10(whole)))
    return f"{change:+.{digits}f}"


def per_image(value: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """One number an image, shaped to multiply pixels."""
    return value[:, None, None, None]


def check(transformation: Transformation) -> None:
    name, low, high = transformation.name, transformation.low, transformation.high
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"The range of '{name}' is {low:g} to {high:g}; give two finite numbers, the lower first.")
    if not 0 <= transformation.probability <= 1:
        raise UserError(f"The probability of '{name}' is {transformation.probability:g}; give one between 0 and 1.")


# ---- transformations of your own -----------------------------------------------------------------------------------


def set_name(text: str) -> str:
    """FILE.py:NAME of a PATH/FILE.py:NAME: what a set of your own is called, wherever its file lies."""
    path, _, name = text.rpartition(":")
    return f"{Path(path).name}:{name}"


def read_transformations(text: str) -> tuple[Transformation, ...]:
    """The transformations PATH.py:NAME stands for, one or several; runs that file, so call it for code you trust.

    Raises UserError when there is no such file or name, when it fails, and when what it holds cannot be an action
    space.
    """
    path, colon, name = text.rpartition(":")
    file = Path(path).expanduser()
    if not colon or not name.isidentifier() or file.suffix != ".py":
        raise UserError(f"'{text}' names no transformations; give PATH.py:NAME, as in mine.py:SET.")
    if not file.is_file():
        raise UserError(f"There is no file {path}; give the PATH.py:NAME of your transformations.")
    spec = importlib.util.spec_from_file_location(f"iwm_own_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look a module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is anybody's code
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error}); mend it.") from error
    held = getattr(module, name, None)
    members = (held,) if isinstance(held, Transformation) else held
    if not isinstance(members, tuple | list) or not members or not all(isinstance(m, Transformation) for m in members):
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")], n=1)
        mend = f"did you mean '{near[0]}'?" if near and held is None else "make it one, or a tuple of them."
        raise UserError(f"'{name}' of {path} is no iwm.Transformation; {mend}")
    require_set(tuple(members), text)
    for member in members:
        try_out(member)
    return tuple(members)


def require_set(members: tuple[Transformation, ...], name: str) -> None:
    """Raises UserError when transformations cannot make an action space together."""
    names = [member.name for member in members]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"The action set {name} has two transformations called '{twice}'; rename one.")
    for one, other in itertools.combinations(members, 2):
        together = one.group and one.group == other.group and one.both == other.both
        if together and one.probability != other.probability:
            raise UserError(
                f"'{one.name}' and '{other.name}' of the action set {name} are of one group, '{one.group}', which is "
                f"applied together or not at all, but have the probabilities {one.probability:g} and "
                f"{other.probability:g}; give them the same."
            )
    if not any(member.graded and member.both for member in members):
        raise UserError(
            f"The action set {name} has no graded transformation of both views, so a world model has nothing to "
            "predict by degrees; make one both=True, graded=True."
        )


def try_out(transformation: Transformation) -> None:
    """Apply a transformation to small images at both ends of its range. Raises UserError when what comes back is not
    as many finite images in [0, 1] of the same size."""
    name = transformation.name
    if not name.isidentifier():
        raise UserError(f"'{name}' cannot name a transformation; use letters, digits and underscores.")
    check(transformation)
    low, high, neutral = transformation.low, transformation.high, transformation.neutral
    if transformation.graded and not low <= neutral <= high:
        raise UserError(
            f"The neutral value of '{name}' is {neutral:g}, outside its range {low:g} to {high:g}: actions would leave "
            "[-1, 1]; widen the range."
        )
    try:
        samples = transformation.draw(np.array([0.0, 0.5, 1 - 1e-9]))
        in_range = np.shape(samples) == (3,) and np.all(samples >= low - 1e-6) and np.all(samples <= high + 1e-6)
    except Exception as error:  # it is anybody's code
        raise UserError(f"Sampling '{name}' fails ({type(error).__name__}: {error}); mend it.") from error
    if not in_range:
        raise UserError(f"What '{name}' samples is not within its range {low:g} to {high:g}; mend its sample.")
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    try:
        outputs = transformation.apply(images.clone(), torch.tensor([low, neutral, high]))
    except Exception as error:  # it is anybody's code
        raise UserError(f"Applying '{name}' fails ({type(error).__name__}: {error}); mend it.") from error
    if not isinstance(outputs, Tensor) or outputs.shape != images.shape or outputs.dtype != images.dtype:
        raise UserError(f"Applying '{name}' to images [b, 3, h, w] must give as many of the same size and type.")
    if not bool(((outputs >= -1e-4) & (outputs <= 1 + 1e-4)).all()):
        raise UserError(f"Applying '{name}' leaves [0, 1]; clamp what it returns.")
