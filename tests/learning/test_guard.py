"""`make test-learning`: the recipe still learns what it learned, and this check notices when it does not."""

from dataclasses import replace

import pytest
from guard import measure, outside, settings, stored

from iwm.training import loop, step

pytestmark = pytest.mark.learning


def test_a_short_run_of_the_demo_learns_what_it_did(tmp_path):
    assert outside(measure(loop.pretrain(settings(tmp_path / "run", seed=7))), stored()) == []


def test_the_guard_fails_at_learning_rate_zero(tmp_path):
    frozen = settings(tmp_path / "run", seed=7, lr=0.0, lr_start=0.0, lr_final=0.0)
    missed = outside(measure(loop.pretrain(replace(frozen, optim=replace(frozen.optim, epochs=1)))), stored())
    assert {"mrr", "explained"} <= {sentence.split()[0] for sentence in missed}


def test_the_guard_fails_with_shuffled_actions(tmp_path, monkeypatch: pytest.MonkeyPatch):
    real = step.make_views

    def shuffled(*args, **more):
        views = real(*args, **more)
        return replace(views, action=views.action.roll(1, dims=0))

    monkeypatch.setattr(step, "make_views", shuffled)
    missed = outside(measure(loop.pretrain(settings(tmp_path / "run", seed=7))), stored())
    assert {"mrr", "action_sensitivity"} <= {sentence.split()[0] for sentence in missed}
