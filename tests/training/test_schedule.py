"""The schedules of training, at the values the paper's settings give."""

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
