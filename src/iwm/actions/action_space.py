"""The action space: named transformations, one parameter per image, and what turns one view into another.

Source x and target y carry raw parameters w(x) and w(y) (1 or 0 where a transformation is not applied). The action is
what a predictor must be told to get from x to y (paper section 3, appendix A): for graded transformations the
difference over the range, `a = (w(y) - w(x)) / (high - low)`, in [-1, 1]; for the others a flag, 1 when x carries it
and it is to be undone. All zeros, the null action, means "as it is". The transformations are a set: `photometric`,
`camera`, or one of your own (docs/actions.md).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from iwm import config
from iwm.actions.action_sets import (
    bare,
    known_transformation,
    members_of,
    origin_of,
    plain_set,
    registered,
    with_settings,
)
from iwm.actions.photometric import (
    gaussian_blur,
)
from iwm.actions.transformation import (
    Transformation,
    amount,
    check,
    require_set,
)
from iwm.runtime import errors
from iwm.runtime.algebra import joined
from iwm.runtime.devices import upload
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import uniforms

# Pixels handled at once on a CPU, per thread: the working set of all operations then stays in the second-level cache.
_PIXELS_AT_ONCE = 2**16


# ---- the space -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """What is done to each of b images; kept on the host, so that which images to touch is known without waiting."""

    values: Float[Tensor, "b t"]
    """Raw parameter of each transformation, neutral where it is not applied."""
    applied: Bool[Tensor, "b t"]
    order: Int64[Tensor, "b g"] | None = None
    """Order of the jitter's transformations (as positions in the space); None: the order of the space."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> "Parameters":
        """The parameters of some of the images: a slice, a list or a tensor of positions."""
        return Parameters(self.values[rows], self.applied[rows], None if self.order is None else self.order[rows])

    @classmethod
    def joined(cls, parts: Sequence["Parameters"]) -> "Parameters":
        """Those of several lists of images, one after the other."""
        orders = [part.order for part in parts if part.order is not None]
        order = joined(orders) if orders else None
        return cls(joined([part.values for part in parts]), joined([part.applied for part in parts]), order)

    def repeat(self, count: int) -> "Parameters":
        """Each image's parameters `count` times in a row."""
        order = None if self.order is None else self.order.repeat_interleave(count, dim=0)
        values, applied = (tensor.repeat_interleave(count, dim=0) for tensor in (self.values, self.applied))
        return Parameters(values, applied, order)


@dataclass(frozen=True)
class ActionSpace:
    """The transformations a world model knows, in the order they are applied and stand in the action vector."""

    transformations: tuple[Transformation, ...]
    random_order: bool = False
    """Shuffle the order of the group "jitter", per image, as torchvision does; shuffled ones precede all others."""
    set: str = "photometric"
    """The set they come from: a built-in one, or FILE.py:NAME."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(transformation.name for transformation in self.transformations)

    @property
    def amounts(self) -> list[int]:
        """Places of the transformations that change a target by an amount; those without a range are left out."""
        return [place for place, t in enumerate(self.transformations) if t.graded and t.both and t.range > 0]

    @property
    def dim(self) -> int:
        """Length k of an action."""
        return len(self.transformations)

    @classmethod
    def from_config(cls, cfg: config.Actions, image_size: int) -> "ActionSpace":
        """The space of `cfg.set` for square images of `image_size` pixels.

        Transformations added by `register` follow those of the set. Raises UserError when there is no such set, and
        on an impossible range or probability.
        """
        members = (*members_of(cfg, image_size), *with_settings(registered(), cfg))
        require_set(members, cfg.set)
        return cls(tuple(map(adapted, members)), cfg.jitter_order == "random", plain_set(cfg.set))

    def sample(
        self,
        seed: int,
        step: int,
        indices: Int64[np.ndarray, " b"],
        view: Literal["source", "target"],
        *,
        always: bool = False,
    ) -> Parameters:
        """Draw the parameters of one view of each image, a pure function of the arguments.

        `always` applies the graded transformations of both views to every image whatever their probability. Only
        transformations meant for both views reach the target.
        """
        parameters = self._draw(seed, view, step, indices, always=always)
        return parameters if view == "source" else self._only_both(parameters)

    def sample_bank(self, seed: int, image_index: int, count: int) -> Parameters:
        """`count` targets of one image for the mean reciprocal rank: every graded transformation of both views, in the
        fixed order."""
        space = dataclasses.replace(self, random_order=False)
        parameters = space._draw(seed, "bank", image_index, np.arange(count), always=True)
        graded = torch.tensor([transformation.graded for transformation in self.transformations])
        return self._keep(self._only_both(parameters), graded)

    def neutral(self, count: int) -> Parameters:
        """Parameters that leave `count` images as they are."""
        values = torch.tensor([transformation.neutral for transformation in self.transformations])
        return Parameters(values.repeat(count, 1), torch.zeros(count, self.dim, dtype=torch.bool))

    def unchanged(self, parameters: Parameters, rows: Bool[np.ndarray, " b"]) -> Parameters:
        """The same parameters, except that these of the images stay as they are."""
        where, neutral = torch.from_numpy(rows)[:, None], self.neutral(len(parameters))
        values = torch.where(where, neutral.values, parameters.values)
        return Parameters(values, parameters.applied & ~where, parameters.order)

    def reach(self, actions: Float[Tensor, "b k"]) -> Parameters:
        """Parameters of the targets that the actions ask for when the source is an untouched image.

        Only graded components of both views count: an untouched image carries nothing to undo. Factors stop at 0.
        """
        actions = actions.detach().float().cpu()
        neutral = self.neutral(len(actions))
        graded = torch.tensor([t.graded and t.both for t in self.transformations])
        values = neutral.values + actions * self._ranges()
        # A factor (neutral 1) below 0 means nothing; a shift (neutral 0) may well be negative.
        values = torch.maximum(values, torch.tensor([t.floor for t in self.transformations]))
        applied = (values != neutral.values) & graded
        return Parameters(torch.where(applied, values, neutral.values), applied)

    def apply(self, images: Float[Tensor, "b 3 h w"], parameters: Parameters) -> Float[Tensor, "b 3 h w"]:
        """Transform each image by its own parameters; images float in [0, 1] on any device, a new tensor comes back.

        In the order of the space, or the parameters' own. Never in lower precision, whatever the caller's autocast.
        """
        if len(parameters) != len(images):
            raise UserError(f"{len(parameters)} sets of parameters were given for {len(images)} images; give one each.")
        # The clone is ours, so each transformation may write its images back in place.
        images = images.clone(memory_format=torch.contiguous_format)
        values = upload(parameters.values.to(images.dtype), images.device)
        steps = self._steps(parameters)
        at_once = max(1, len(images))
        if images.device.type == "cpu":
            at_once = max(1, _PIXELS_AT_ONCE * torch.get_num_threads() // (images.shape[-1] * images.shape[-2]))
        for start in range(0, len(images), at_once):
            chunk = slice(start, start + at_once)
            with torch.autocast(images.device.type, enabled=False):
                self._apply_steps(images[chunk], values[chunk], [(position, rows[chunk]) for position, rows in steps])
        return images

    def difference(self, source: Parameters, target: Parameters) -> Float[Tensor, "b k"]:
        """The action that leads from source to target, on the host.

        Graded: (target - source) / range, 0 for an empty range. Flag: 1 where the source carries it (and the target
        does not).
        """
        ranges = self._ranges()
        graded = (target.values - source.values) / torch.where(ranges > 0, ranges, torch.inf)
        flags = source.applied.float() - target.applied.float()
        return torch.where(torch.tensor([t.graded for t in self.transformations]), graded, flags)

    def null(self, count: int, device: torch.device | str | None = None) -> Float[Tensor, "{count} k"]:
        """The action "as it is", `count` times."""
        return torch.zeros(count, self.dim, device=device)

    def encode(self, **changes: float) -> Float[Tensor, " k"]:
        """The action of named changes: differences of raw factors (hue in turns), 1 for a flag to be undone.

        `encode(brightness=0.3, hue=-0.05, grayscale=1)`. Raises UserError for an unknown name, and for a flag that is
        neither 0 nor 1.
        """
        action = torch.zeros(self.dim)
        for name, change in changes.items():
            if name not in self.names:
                raise UserError(f"Unknown action '{name}': {errors.did_you_mean(name, self.names)}")
            position = self.names.index(name)
            transformation = self.transformations[position]
            if not math.isfinite(change):
                raise UserError(f"Action '{name}' is {change}; give a finite number.")
            if transformation.graded:
                action[position] = change / transformation.range if transformation.range > 0 else 0.0
            elif change in (0, 1) or (transformation.both and change == -1):
                action[position] = change
            else:
                raise UserError(f"Action '{name}' is {change:g}; it is a flag, give 1 to undo it or 0 to leave it.")
        return action

    def describe(self, action: Float[Tensor, " k"]) -> str:
        """The action in words, in raw units: "brightness +0.30, hue -0.05, undo blur", or "as it is"."""
        words = []
        for transformation, component in zip(self.transformations, action.tolist(), strict=True):
            if transformation.graded:
                change = amount(component * transformation.range, transformation.range)
                if float(change):
                    words.append(f"{transformation.name} {change}")
            elif abs(component) >= 0.5:
                words.append(f"{'undo' if component > 0 else 'add'} {transformation.name}")
        return ", ".join(words) or "as it is"

    def spec(self) -> dict[str, Any]:
        """Everything but the code, JSON-safe; travels with the weights."""
        fields = [field.name for field in dataclasses.fields(Transformation) if field.name not in ("apply", "sample")]
        described = []
        for t in self.transformations:
            values = {name: getattr(t, name) for name in fields}  # a user's own may be numpy's numbers
            plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
            described.append(plain | {"origin": origin_of(t)})
        return {"set": self.set, "transformations": described, "random_order": self.random_order}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ActionSpace":
        """Rebuild a space from `spec()`, without running any code that is not loaded already.

        Raises UserError when one of its transformations is not known.
        """
        transformations = []
        try:
            named = spec.get("set", "photometric")
            for fields in spec["transformations"]:
                known = known_transformation(fields, named)
                values = {name: value for name, value in fields.items() if name != "origin"}
                transformations.append(adapted(dataclasses.replace(known, **values)))
            return cls(tuple(transformations), spec["random_order"], named)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The action space saved with the weights is damaged ({error}); export them again."
            ) from None

    def _ranges(self) -> Float[Tensor, " t"]:
        return torch.tensor([transformation.range for transformation in self.transformations])

    def _draw(self, seed: int, purpose: str, step: int, indices: np.ndarray, always: bool) -> Parameters:
        # Two numbers a transformation, whether and how much: one more transformation leaves the others' draws alone.
        uniform = uniforms(seed, f"actions {purpose}", step, indices, 2 * self.dim)
        values = np.empty((len(uniform), self.dim), dtype=np.float32)
        applied = np.empty((len(uniform), self.dim), dtype=bool)
        leaders: dict[str, int] = {}
        for position, transformation in enumerate(self.transformations):
            leader = leaders.setdefault(transformation.group or transformation.name, position)
            whether, value = uniform[:, 2 * leader], uniform[:, 2 * position + 1]
            certain = always and transformation.graded and transformation.both
            applied[:, position] = whether < (1.0 if certain else transformation.probability)
            values[:, position] = np.where(applied[:, position], transformation.draw(value), transformation.neutral)
        order = None
        if self.random_order:
            jitter = np.array([p for p, t in enumerate(self.transformations) if t.group == "jitter"])
            keys = uniforms(seed, f"actions order {purpose}", step, indices, len(jitter))
            order = torch.from_numpy(jitter[np.argsort(keys, axis=1)])
        return Parameters(torch.from_numpy(values), torch.from_numpy(applied), order)

    def _only_both(self, parameters: Parameters) -> Parameters:
        return self._keep(parameters, torch.tensor([transformation.both for transformation in self.transformations]))

    def _keep(self, parameters: Parameters, kept: Bool[Tensor, " t"]) -> Parameters:
        values = torch.where(kept, parameters.values, self.neutral(len(parameters)).values)
        return Parameters(values, parameters.applied & kept, parameters.order)

    def _steps(self, parameters: Parameters) -> list[tuple[int, Bool[np.ndarray, " b"]]]:
        """What to do in which order: a transformation's position and the images it touches."""
        applied = parameters.applied.cpu().numpy()
        if parameters.order is None:
            return [(position, applied[:, position]) for position in range(self.dim)]
        order = parameters.order.cpu().numpy()
        shuffled = sorted(set(order.ravel().tolist()))
        steps = [(t, applied[:, t] & (place == t)) for place in order.T for t in shuffled]
        return steps + [(t, applied[:, t]) for t in range(self.dim) if t not in shuffled]

    def _apply_steps(
        self, images: Float[Tensor, "b 3 h w"], values: Float[Tensor, "b t"], steps: Sequence[tuple[int, np.ndarray]]
    ) -> None:
        """Run the steps in place. Consecutive steps on the same images share one gather and one scatter."""
        for key, run in itertools.groupby(steps, key=lambda step: step[1].tobytes()):
            rows = np.frombuffer(key, dtype=bool)
            if not rows.any():
                continue
            picked, raw, where = images, values, None
            if not rows.all():
                where = upload(torch.from_numpy(np.flatnonzero(rows)), images.device)
                picked, raw = images.index_select(0, where), values.index_select(0, where)
            for position, _ in run:
                picked = _changed(self.transformations[position], picked, raw[:, position])
            if where is None:
                images.copy_(picked)
            else:
                images.index_copy_(0, where, picked)


def _changed(
    transformation: Transformation, images: Float[Tensor, "b 3 h w"], values: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """The images changed. Raises UserError where a transformation of the user's refuses these values."""
    try:
        return transformation.apply(images, values)
    except Exception as error:  # it may be anybody's code
        if origin_of(transformation) or isinstance(error, UserError) or errors.is_out_of_memory(error):
            raise
        low, high = float(values.min()), float(values.max())
        raise UserError(
            f"Applying '{transformation.name}' with {low:g} to {high:g} fails ({type(error).__name__}: {error}); stay "
            f"within its range, {transformation.low:g} to {transformation.high:g}, or mend it."
        ) from error


def adapted(transformation: Transformation) -> Transformation:
    """Checked, and a blur made as wide as the largest sigma of the space needs: one image's blur must not depend on
    its batch."""
    check(transformation)
    if bare(transformation.apply) is not gaussian_blur:
        return transformation
    return dataclasses.replace(transformation, apply=partial(gaussian_blur, radius=math.ceil(3 * transformation.high)))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing by which the actions of two `spec()`s differ, as the end of "was trained ..."; empty where they
    are alike."""
    was, now = ({fields["name"]: fields for fields in spec["transformations"]} for spec in (old, new))
    for name in was:
        if name not in now:
            return f"with the transformation '{name}', which is not there now"
    for name in now:
        if name not in was:
            return f"without the transformation '{name}', which is there now"
    if list(was) != list(now):
        return f"with the transformations in the order {', '.join(was)}, now it is {', '.join(now)}"
    for name in now:
        before, after = ((fields[name]["low"], fields[name]["high"]) for fields in (was, now))
        if before != after:
            return f"with the range {before[0]} to {before[1]} of '{name}', now it is {after[0]} to {after[1]}"
        for field, value in now[name].items():
            if was[name].get(field, value) != value:  # older ones may hold fewer
                return f"with {field} = {was[name][field]!r} of '{name}', now it is {value!r}"
    return ""
