"""The action space: named photometric transformations, one parameter per image, and what turns one view into another.

Source x and target y carry raw parameters w(x) and w(y) (1 or 0 where a transformation is not applied). The action is
what a predictor must be told to get from x to y (paper section 3, appendix A): for graded transformations the
difference over the range, `a = (w(y) - w(x)) / (high - low)`, in [-1, 1]; for the destructive ones a flag, 1 when x
carries it and it is to be undone. All zeros, the null action, means "as it is". A transformation of your own joins by
one call of `register`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from iwm import config
from iwm.errors import UserError
from iwm.randomness import uniforms

# Pixels handled at once on a CPU, per thread: the working set of all operations then stays in the second-level cache.
_PIXELS_AT_ONCE = 2**16


# Operations. Images are float in [0, 1]; the meaning of every parameter is torchvision's.


def _per_image(value: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return value[:, None, None, None]


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Grey level by the weights torchvision and Pillow use (ITU-R 601)."""
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def brightness(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Multiply by `value` (1: unchanged, 0: black), clamped to [0, 1]."""
    return images.mul(_per_image(value)).clamp_(0, 1)


def contrast(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Blend with the mean grey level of the image itself (1: unchanged, 0: uniform grey), clamped to [0, 1]."""
    red, green, blue = images.flatten(2).mean(dim=2).unbind(dim=1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    return images.mul(_per_image(value)).add_(_per_image((1 - value) * grey)).clamp_(0, 1)


def saturation(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Blend with the grey image (1: unchanged, 0: grey), clamped to [0, 1]."""
    return torch.lerp(_luma(images), images, _per_image(value)).clamp_(0, 1)


def hue(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue by `value` turns (0: unchanged) at constant HSV saturation and value.

    Without the six cases of the usual conversion: with every channel scaled to c' = (c - min) / (max - min), the
    hue's distance from pure red is 1 + g' + b' - r' sixths of a turn, towards green where g > b; and a hue H gives
    back r = min + (max - min) (1 - T(H - 3)), g = min + (max - min) T(H - 2), b likewise with H - 4, where
    T(x) = clamp(2 - |x|, 0, 1).
    """
    red, green, blue = images.split(1, dim=1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    high, low = torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)
    chroma = high - low
    # Grey pixels have no hue; with chroma 0 any number gives back the same grey.
    turn = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-12)).add_(1)
    turn.copysign_(green - blue).add_(_per_image(6 * value))
    turn.sub_(turn.mul(1 / 6).floor_(), alpha=6)  # remainder_(6) is several times slower on CPUs
    turned = torch.empty_like(images)
    for channel, centre in enumerate((3, 2, 4)):
        torch.sub(turn, centre, out=turned[:, channel : channel + 1])
    turned.abs_().sub_(2).clamp_(-1, 0).mul_(chroma)  # now -(max - min) T
    turned[:, :1].add_(high)
    torch.sub(low, turned[:, 1:], out=turned[:, 1:])
    return turned


def grayscale(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Grey level in all three channels; `value` is not used."""
    return _luma(images).expand_as(images)


def gaussian_blur(
    images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"], radius: int = 3
) -> Float[Tensor, "b 3 h w"]:
    """Convolve with a Gaussian of standard deviation `value` pixels, cut off at `radius`, borders reflected.

    Equals torchvision's gaussian_blur with kernel size 2 radius + 1. The radius is cut where the image is too small
    to be reflected that far.
    """
    radius = min(radius, images.shape[-1] - 1, images.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-(offsets**2) / (2 * value[:, None] ** 2), dim=1)
    for axis in (2, 3):
        pad = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        padded = torch.nn.functional.pad(images, pad, mode="reflect")
        length = images.shape[axis]
        # Both sides of the kernel weigh the same: r + 1 multiplications instead of 2 r + 1.
        images = padded.narrow(axis, radius, length) * _per_image(kernel[:, radius])
        for k in range(radius):
            pair = padded.narrow(axis, k, length) + padded.narrow(axis, 2 * radius - k, length)
            images.addcmul_(pair, _per_image(kernel[:, k]))
    return images


def solarize(images: Float[Tensor, "b 3 h w"], value: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Invert every channel at or above the threshold `value`."""
    return torch.where(images >= _per_image(value), 1 - images, images)


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


_BUILT_IN = (
    Transformation(
        name="brightness", apply=brightness, graded=True, both=True,
        low=0.6, high=1.4, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="contrast", apply=contrast, graded=True, both=True,
        low=0.6, high=1.4, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="saturation", apply=saturation, graded=True, both=True,
        low=0.8, high=1.2, neutral=1.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="hue", apply=hue, graded=True, both=True,
        low=-0.1, high=0.1, neutral=0.0, probability=0.8, group="jitter",
    ),
    Transformation(
        name="grayscale", apply=grayscale, graded=False, both=False, low=1.0, high=1.0, neutral=0.0, probability=0.2
    ),
    Transformation(
        name="blur", apply=gaussian_blur, graded=False, both=False, low=0.1, high=2.0, neutral=0.0, probability=0.2
    ),
    Transformation(
        name="solarize", apply=solarize, graded=False, both=False, low=0.5, high=0.5, neutral=2.0, probability=0.2
    ),
)  # fmt: skip
_REGISTRY = {transformation.name: transformation for transformation in _BUILT_IN}


def register(transformation: Transformation) -> Transformation:
    """Add a transformation to every action space built or loaded from now on.

    Raises UserError when the name is taken by a built-in one or is no identifier (it is typed as `name=0.3`).
    """
    if any(transformation.name == built_in.name for built_in in _BUILT_IN):
        raise UserError(f"'{transformation.name}' is a built-in transformation; give yours another name.")
    if not transformation.name.isidentifier():
        raise UserError(f"'{transformation.name}' cannot name a transformation; use letters, digits and underscores.")
    _check(transformation)
    _REGISTRY[transformation.name] = transformation
    return transformation


def _check(transformation: Transformation) -> None:
    name, low, high = transformation.name, transformation.low, transformation.high
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"The range of '{name}' is {low:g} to {high:g}; give two finite numbers, the lower first.")
    if not 0 <= transformation.probability <= 1:
        raise UserError(f"The probability of '{name}' is {transformation.probability:g}; give one between 0 and 1.")


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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(transformation.name for transformation in self.transformations)

    @property
    def dim(self) -> int:
        """Length k of an action."""
        return len(self.transformations)

    @classmethod
    def from_config(cls, cfg: config.Actions, image_size: int) -> "ActionSpace":
        """The photometric space of the paper (appendix A) for square images of `image_size` pixels.

        Level "jitter" keeps the destructive transformations' places in the action but never applies them, so models
        of all levels stay comparable. Registered transformations follow the built-in ones. Raises UserError on an
        impossible range or probability.
        """
        strengths = {name: getattr(cfg, name) for name in ("brightness", "contrast", "saturation", "hue")}
        if cfg.level == "strong":
            strengths = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
        for name, strength in strengths.items():
            if not 0 <= strength <= (0.5 if name == "hue" else math.inf):
                limit = "between 0 and 0.5 turns" if name == "hue" else "at least 0"
                raise UserError(f"Setting 'actions.{name}' is {strength:g}; it must be {limit}.")
        sigma = cfg.blur_sigma or _blur_sigma(image_size)
        if not 0 < sigma[0] <= sigma[1]:
            raise UserError(f"Setting 'actions.blur_sigma' is {sigma}; give two positive numbers, the smaller first.")
        ranges = {name: (max(0.0, 1 - s), 1 + s) for name, s in strengths.items()}
        ranges |= {"hue": (-strengths["hue"], strengths["hue"]), "blur": sigma}
        probabilities = dict.fromkeys(strengths, cfg.jitter_probability)
        for name in ("grayscale", "blur", "solarize"):
            probabilities[name] = 0.0 if cfg.level == "jitter" else getattr(cfg, name)
        return cls(
            tuple(
                _adapted(
                    transformation,
                    *ranges.get(transformation.name, (transformation.low, transformation.high)),
                    probabilities.get(transformation.name, transformation.probability),
                )
                for transformation in _REGISTRY.values()
            ),
            cfg.jitter_order == "random",
        )

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

        `always` applies the graded transformations to every image whatever their probability. Only transformations
        meant for both views reach the target.
        """
        parameters = self._draw(seed, view, step, indices, always=always)
        return parameters if view == "source" else self._only_both(parameters)

    def sample_bank(self, seed: int, image_index: int, count: int) -> Parameters:
        """`count` targets of one image for the mean reciprocal rank: all graded transformations, in the fixed order."""
        space = dataclasses.replace(self, random_order=False)
        drawn = space._draw(seed, "bank", image_index, np.arange(count), always=True)
        graded = torch.tensor([transformation.graded for transformation in self.transformations])
        return self._keep(self._only_both(drawn), graded)

    def neutral(self, count: int) -> Parameters:
        """Parameters that leave `count` images as they are."""
        values = torch.tensor([transformation.neutral for transformation in self.transformations])
        return Parameters(values.repeat(count, 1), torch.zeros(count, self.dim, dtype=torch.bool))

    def reach(self, actions: Float[Tensor, "b k"]) -> Parameters:
        """Parameters of the targets that the actions ask for when the source is an untouched image.

        Only graded components count: an untouched image carries nothing to undo. Factors stop at 0.
        """
        actions = actions.detach().float().cpu()
        neutral = self.neutral(len(actions))
        graded = torch.tensor([transformation.graded for transformation in self.transformations])
        values = neutral.values + actions * self._ranges()
        # A factor (neutral 1) below 0 means nothing; a shift (neutral 0) may well be negative.
        values = torch.where(neutral.values > 0, values.clamp_min(0), values)
        applied = (values != neutral.values) & graded
        return Parameters(torch.where(applied, values, neutral.values), applied)

    def apply(self, images: Float[Tensor, "b 3 h w"], parameters: Parameters) -> Float[Tensor, "b 3 h w"]:
        """Transform each image by its own parameters; images float in [0, 1] on any device, a new tensor comes back.

        Order: brightness, contrast, saturation, hue (or the parameters' own order), grayscale, blur, solarize.
        """
        if len(parameters) != len(images):
            raise UserError(f"{len(parameters)} sets of parameters were given for {len(images)} images; give one each.")
        # The clone is ours, so each transformation may write its images back in place.
        images = images.clone(memory_format=torch.contiguous_format)
        values = parameters.values.to(images.device, images.dtype, non_blocking=True)
        steps = self._steps(parameters)
        at_once = max(1, len(images))
        if images.device.type == "cpu":
            at_once = max(1, _PIXELS_AT_ONCE * torch.get_num_threads() // (images.shape[-1] * images.shape[-2]))
        for start in range(0, len(images), at_once):
            chunk = slice(start, start + at_once)
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
                raise UserError(f"Unknown action '{name}': {config.did_you_mean(name, self.names)}")
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
                change = f"{component * transformation.range:+.2f}"
                if change not in ("+0.00", "-0.00"):
                    words.append(f"{transformation.name} {change}")
            elif abs(component) >= 0.5:
                words.append(f"{'undo' if component > 0 else 'add'} {transformation.name}")
        return ", ".join(words) or "as it is"

    def spec(self) -> dict[str, Any]:
        """Everything but the code, JSON-safe; travels with the weights."""
        fields = [field.name for field in dataclasses.fields(Transformation) if field.name not in ("apply", "sample")]
        described = [{name: getattr(t, name) for name in fields} for t in self.transformations]
        return {"transformations": described, "random_order": self.random_order}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ActionSpace":
        """Rebuild a space from `spec()`. Raises UserError when one of its transformations is not registered."""
        transformations = []
        try:
            for fields in spec["transformations"]:
                name = fields["name"]
                if name not in _REGISTRY:
                    raise UserError(
                        f"The action space uses the transformation '{name}', which is not known here; "
                        "call iwm.actions.register with it before loading."
                    )
                known = dataclasses.replace(_REGISTRY[name], **fields)
                transformations.append(_adapted(known, known.low, known.high, known.probability))
            return cls(tuple(transformations), spec["random_order"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The action space saved with the weights is damaged ({error}); export them again."
            ) from None

    def _ranges(self) -> Float[Tensor, " t"]:
        return torch.tensor([transformation.range for transformation in self.transformations])

    def _draw(self, seed: int, purpose: str, step: int, indices: np.ndarray, always: bool) -> Parameters:
        # Two numbers a transformation, whether and how much: one more transformation leaves the others' draws alone.
        drawn = uniforms(seed, f"actions {purpose}", step, indices, 2 * self.dim)
        values = np.empty((len(drawn), self.dim), dtype=np.float32)
        applied = np.empty((len(drawn), self.dim), dtype=bool)
        leaders: dict[str, int] = {}
        for position, transformation in enumerate(self.transformations):
            leader = leaders.setdefault(transformation.group or transformation.name, position)
            whether, value = drawn[:, 2 * leader], drawn[:, 2 * position + 1]
            certain = always and transformation.graded
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
                where = torch.from_numpy(np.flatnonzero(rows)).to(images.device, non_blocking=True)
                picked, raw = images.index_select(0, where), values.index_select(0, where)
            for position, _ in run:
                picked = self.transformations[position].apply(picked, raw[:, position])
            if where is None:
                images.copy_(picked)
            else:
                images.index_copy_(0, where, picked)


def _blur_sigma(image_size: int) -> tuple[float, float]:
    """0.1-2.0 pixels at 224 px (paper appendix A), at small sizes narrowed to what visibly changes pixels."""
    if image_size > 224:
        return 0.1 * image_size / 224, 2.0 * image_size / 224
    way = max(0.0, (image_size - 32) / (224 - 32))
    return 0.4 + way * (0.1 - 0.4), 1.0 + way * (2.0 - 1.0)


def _adapted(transformation: Transformation, low: float, high: float, probability: float) -> Transformation:
    apply = transformation.apply
    if transformation.name == "blur":
        # As wide as the largest sigma of the space needs: one image's blur must not depend on its batch.
        apply = partial(gaussian_blur, radius=math.ceil(3 * high))
    adapted = dataclasses.replace(transformation, low=low, high=high, probability=probability, apply=apply)
    _check(adapted)
    return adapted
