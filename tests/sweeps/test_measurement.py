"""A cell is measured by the verbs themselves, with the protocol's budgets and no defaults of its own."""

from dataclasses import replace

import pytest
from conftest import tiny, with_run

from iwm import verbs
from iwm.runtime.errors import UserError
from iwm.sweeps import measurement
from iwm.verbs.finetune import Finetune
from iwm.verbs.probe import Probe
from iwm.verbs.shared import Schedule
from iwm.verbs.sweep import Sweep
from iwm.verbs.world import World

SETTINGS = with_run(tiny(), seed=3)
COMMON = {"run": "RUN", "data": "DATA", "val": "VAL", "seed": 3, "speed": SETTINGS.speed}
TUNING = {"train": "predictor", "predictor": "pretrained", "baselines": False, "schedule": Schedule(epochs=3)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("world", World(images=2, bank=8, **COMMON)),
        ("linear", Probe(kind="linear", baselines=True, **COMMON)),
        ("attentive", Probe(kind="attentive", baselines=False, schedule=Schedule(epochs=5), **COMMON)),
        ("predictor_finetuning", Finetune(views=1, lrs=(0.1,), ratios=(1.0,), **TUNING, **COMMON)),
    ],
)
def test_every_number_comes_from_its_own_verb(monkeypatch, name, options):
    monkeypatch.setattr(verbs.Verb, "run", lambda verb, options: {"verb": verb.name, "options": options})
    protocol = Sweep(
        world_images=2,
        bank=8,
        attentive_epochs=5,
        finetune_epochs=3,
        finetune_views=1,
        finetune_lrs=(0.1,),
        finetune_ratios=(1.0,),
    )
    how = protocol.evaluations(controls=True)[name]
    verb = {"world": "world", "predictor_finetuning": "finetune"}.get(name, "probe")
    result = measurement.measure(name, "RUN", "DATA", "VAL", SETTINGS, how)
    assert result == {"verb": verb, "options": options}


def test_the_controls_are_measured_once():
    protocol = Sweep(settings=replace(tiny(), recipe="demo"))
    with_controls, without = (protocol.evaluations(controls=controls) for controls in (True, False))
    assert with_controls | {"linear": {"baselines": False}} == without


def test_rates_that_are_none_are_refused_before_anything_is_trained():
    how = {"epochs": 1, "views": 1, "lrs": (0.0,), "ratios": (1.0,)}
    with pytest.raises(UserError, match="--lrs 0"):
        measurement.finetuning("RUN", "DATA", how)
