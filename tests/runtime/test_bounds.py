"""Values outside of their bounds are named as users type them, with what to give instead."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pytest
import torch

from iwm.runtime.bounds import Above, Area, AtLeast, Finite, Fraction, Positives, Rising, Seed, check
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import uniforms


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: Annotated[int, AtLeast(1)] = 8
    flip: Annotated[float, Fraction()] = 0.5
    betas: Annotated[tuple[float, float], Fraction(below_one=True)] = (0.9, 0.99)
    lrs: Annotated[tuple[float, ...], Positives()] = (1e-3,)
    sigma: Annotated[tuple[float, float] | None, Rising()] = None
    area: Annotated[tuple[float, float], Area()] = (0.3, 1.0)
    counts: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    share: Annotated[float, Fraction(above_zero=True)] = 1.0
    std: Annotated[tuple[float, float], Above(0)] = (1.0, 1.0)
    mean: Annotated[tuple[float, float], Finite()] = (0.0, -1.0)
    seed: Annotated[int, Seed()] = 0
    name: str = field(default="")


@dataclass(frozen=True, kw_only=True)
class Further(Options):
    batch_size: int = 16
    """Another default; the bound is inherited."""
    layers: Annotated[int, AtLeast(0)] = 0


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"batch_size": 0}, "--batch-size 0: give 1 or more."),
        ({"flip": 7.0}, "--flip 7.0: give a number from 0 to 1."),
        ({"flip": math.nan}, "--flip nan: give a number from 0 to 1."),
        ({"betas": (0.9, 1.0)}, "--betas 0.9 1.0: give numbers from 0 to below 1."),
        ({"lrs": (1e-3, -1.0)}, "--lrs 0.001 -1.0: give one number or more, all above 0."),
        ({"lrs": (math.inf,)}, "--lrs inf: give one number or more, all above 0."),
        ({"lrs": ()}, "--lrs nothing: give one number or more, all above 0."),
        ({"sigma": (2.0, 1.0)}, "--sigma 2.0 1.0: give two positive numbers, the smaller one first."),
        ({"area": (2, 3)}, "--area 2 3: an area is a fraction of the image, give at most 1."),
        ({"area": (0, 1)}, "--area 0 1: give two positive numbers, the smaller one first."),
        ({"counts": (3, math.inf)}, "--counts 3 inf: give numbers of 0 or more."),
        ({"counts": (3, -1)}, "--counts 3 -1: give numbers of 0 or more."),
        ({"share": 0.0}, "--share 0.0: give a number above 0, up to 1."),
        ({"share": 1.5}, "--share 1.5: give a number above 0, up to 1."),
        ({"std": (1.0, 0.0)}, "--std 1.0 0.0: give numbers above 0."),
        ({"std": (math.inf, 1.0)}, "--std inf 1.0: give numbers above 0."),
        ({"mean": (math.nan, 1.0)}, "--mean nan 1.0: give finite numbers."),
        ({"mean": (1.0, -math.inf)}, "--mean 1.0 -inf: give finite numbers."),
        ({"seed": -1}, "--seed -1: give 0 or more."),
        ({"seed": 2**62}, "--seed 4611686018427387904: give less than 2**62 (4611686018427387904)."),
    ],
)
def test_a_value_outside_of_its_bounds_is_named_with_its_mend(value, sentence):
    with pytest.raises(UserError) as caught:
        check(Options(**value), "--")
    assert str(caught.value) == sentence


def test_the_ends_are_within():
    check(Options(batch_size=1, flip=0.0, betas=(0.0, 0.5), sigma=(1.0, 1.0), area=(0.1, 1.0)))
    check(Options(flip=1, share=1, std=(1e-9, 1.0), seed=2**62 - 1))


def test_the_largest_seed_and_those_beside_it_can_be_drawn_from():
    for seed in (2**62 - 1, 2**62 + 10**6):
        assert uniforms(seed, "test", 0, np.arange(3), 2).shape == (3, 2)
        torch.Generator().manual_seed(seed)


def test_settings_are_named_with_their_group():
    with pytest.raises(UserError, match=r"^optim\.batch_size is nan; give 1 or more\.$"):
        check(Options(batch_size=math.nan), "optim.")  # pyright: ignore[reportArgumentType]


def test_bounds_are_inherited():
    check(Further())
    with pytest.raises(UserError, match="--layers -1"):
        check(Further(layers=-1), "--")
    with pytest.raises(UserError, match="--batch-size 0"):
        check(Further(batch_size=0), "--")
    with pytest.raises(UserError, match="--flip 2"):
        check(Further(flip=2), "--")
