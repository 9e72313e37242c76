import random

import numpy as np
import pytest
import torch

from iwm.runtime.randomness import _mix, permutation, seed_of, seeded, uniforms

IMAGES = np.arange(20_000)


def test_generator_is_splitmix64():
    """First two outputs of the reference implementation for seed 1234567."""
    states = np.array([1234567, (1234567 + 0x9E3779B97F4A7C15) % 2**64], dtype=np.uint64)
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973]


def test_pure_function_of_its_arguments():
    drawn = uniforms(3, "crop", 7, IMAGES, 5)
    assert (drawn == uniforms(3, "crop", 7, IMAGES, 5)).all()
    shuffled = np.random.default_rng(0).permutation(len(IMAGES))
    assert (uniforms(3, "crop", 7, IMAGES[shuffled], 5) == drawn[shuffled]).all()
    assert (uniforms(3, "crop", 7, IMAGES[17:18], 5) == drawn[17:18]).all()
    assert (uniforms(3, "crop", 7, IMAGES, 9)[:, :5] == drawn).all(), "asking for more must not change the first ones"


def test_uniform_in_the_unit_interval():
    drawn = uniforms(0, "crop", 0, IMAGES, 4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.stack([np.histogram(column, bins=50, range=(0, 1))[0] for column in drawn.T])
    expected = len(IMAGES) / 50
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    assert (chi_square < 49 + 5 * np.sqrt(2 * 49)).all()


@pytest.mark.parametrize(
    "other",
    [
        lambda: uniforms(1, "crop", 0, IMAGES, 1),
        lambda: uniforms(-1, "crop", 0, IMAGES, 1),
        lambda: uniforms(0, "mask", 0, IMAGES, 1),
        lambda: uniforms(0, "crop", 1, IMAGES, 1),
        lambda: uniforms(0, "crop", 0, IMAGES + 1, 1),
        lambda: uniforms(0, "crop", 0, IMAGES, 2)[:, 1:],
    ],
    ids=["seed", "negative seed", "purpose", "step", "index", "place"],
)
def test_streams_are_independent(other):
    correlation = np.corrcoef(uniforms(0, "crop", 0, IMAGES, 1)[:, 0], other()[:, 0])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(IMAGES))


def test_seed_and_step_are_not_interchangeable():
    assert (uniforms(1, "crop", 2, IMAGES[:9], 3) != uniforms(2, "crop", 1, IMAGES[:9], 3)).all()


def test_permutation():
    first, second = permutation(0, "epoch", 0, 1000), permutation(0, "epoch", 1, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == permutation(0, "epoch", 0, 1000)).all()
    assert (first != second).mean() > 0.98


def test_global_generators_are_seeded_inside_and_untouched_outside():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    def start():
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)

    start()
    outside = draw(), draw()
    start()
    first = draw()
    with seeded(0, "a", 1, 2):
        inside = draw()
    assert (first, draw()) == outside
    with seeded(0, "a", 1, 2):
        assert draw() == inside
    for other in ((1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 2), (0, "a", 1, 3)):
        with seeded(*other):
            assert draw() != inside


def test_each_of_several_draws_has_a_seed_of_its_own():
    seeds = [seed_of(seed, "source", number) for seed in (0, 1, -5) for number in range(50)]
    assert len(set(seeds)) == 150
    assert seeds[::50] == [0, 1, -5], "the first is the seed itself"
    drawn = [uniforms(seed, "masks", 0, np.arange(200), 1)[:, 0] for seed in seeds[:10]]
    assert np.abs(np.corrcoef(drawn) - np.eye(10)).max() < 0.3
