"""The schedules of training, at the values the paper's settings give."""

from dataclasses import replace

import pytest

from iwm.config import Optim
from iwm.training.schedule import Schedule


def test_the_papers_values_at_the_last_step():
    schedule = Schedule(Optim(), steps_per_epoch=600)
    last = schedule.steps - 1
    assert schedule.lr(last) == pytest.approx(1.195e-4, rel=2e-3)
    assert schedule.weight_decay(last) == pytest.approx(0.366, abs=5e-4)
    assert schedule.ema(last) == pytest.approx(0.9992, abs=1e-5)


def test_warm_up_and_peak():
    schedule = Schedule(Optim(), steps_per_epoch=10)
    assert schedule.lr(0) == pytest.approx(2e-4)
    assert schedule.lr(200) == pytest.approx((2e-4 + 1e-3) / 2)
    assert schedule.lr(400) == pytest.approx(1e-3)
    assert max(schedule.lr(step) for step in range(schedule.steps)) == pytest.approx(1e-3)


def test_the_learning_rate_scales_with_the_batch():
    small, large = Schedule(Optim(batch_size=512), 10), Schedule(Optim(batch_size=2048), 10)
    assert small.lr(500) == pytest.approx(large.lr(500) / 4)


def test_steps_stand_in_place_of_epochs():
    """The rate then falls to its end in so many steps; the warm-up stays in epochs."""
    short = Schedule(Optim(steps=25, warmup_epochs=1, stretch=1.0), steps_per_epoch=10)
    assert short.steps == 25
    assert [short.lr(step) for step in (10, 25)] == pytest.approx([1e-3, 1e-6])
    assert Schedule(Optim(epochs=2), steps_per_epoch=10).steps == 20


def test_a_constant_rate_falls_along_a_line_in_the_last_share():
    """Warm-up, stable, decay (Hägele et al. 2024, section 3), against the formula in float64."""
    own = Optim(schedule="constant", decay=0.25, lr=3e-3, lr_final=1e-5, lr_start=1e-4, batch_size=16, lr_batch=32)
    schedule = Schedule(replace(own, steps=200, warmup_epochs=2, stretch=1.25), steps_per_epoch=10)
    for step in range(201):
        if step < 20:
            wanted = 1e-4 + (3e-3 - 1e-4) * step / 20
        else:
            wanted = 3e-3 if step <= 150 else 3e-3 * (200 - step) / 50 + 1e-5 * (step - 150) / 50
        assert schedule.lr(step) == pytest.approx(wanted / 2, rel=1e-12), step
    cosine = Schedule(replace(schedule.settings, schedule="cosine"), 10)
    assert schedule.weight_decay(170) == cosine.weight_decay(170)
    assert schedule.ema(170) == cosine.ema(170)


def test_a_constant_rate_at_the_ends_of_its_share():
    """Without decay it never falls; in a training that is all decay it falls from the end of the warm-up on."""
    short = Optim(schedule="constant", steps=100, warmup_epochs=1, lr_final=0.0)
    assert Schedule(replace(short, decay=0.0), 10).lr(99) == pytest.approx(1e-3)
    whole = Schedule(replace(short, decay=1.0), 10)
    assert [whole.lr(step) for step in (10, 55, 100)] == pytest.approx([1e-3, 5e-4, 0.0])


def test_a_longer_training_at_a_constant_rate_begins_like_the_shorter_one():
    """What makes it cheap to extend: up to the shorter one's decay the rates are the same."""
    short, long = (Schedule(Optim(schedule="constant", steps=n, warmup_epochs=1), 10) for n in (100, 300))
    assert [short.lr(step) for step in range(81)] == [long.lr(step) for step in range(81)]
