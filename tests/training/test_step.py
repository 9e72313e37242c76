"""One step of training: what a step that is not finite leaves alone."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DEVICES, pictures_file, tiny, trained_on
from safetensors.torch import load_file

from iwm import config
from iwm.data.loader import Batch
from iwm.model.weights import TENSORS
from iwm.run_folder import RunFolder
from iwm.runtime.devices import Session
from iwm.runtime.errors import Interrupted
from iwm.training import loop
from iwm.training.step import Training, compiles


def started(settings: config.Config) -> Training:
    """The state before the first of four steps an epoch."""
    return Training.start(settings, 4, Session.of(settings.speed))


def one_batch(step: int) -> Batch:
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
    return Batch(step, np.arange(16), images, None, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_is_not_finite_changes_nothing(kind, device):
    """Weights, teacher, target statistics, optimiser: the step after it is, to the bit, the one there would have been
    without it, at the same place of the schedule."""
    speed = replace(tiny().speed, device=device)
    chosen = tiny(optim=replace(tiny().optim, kind=kind, accumulate=2), speed=speed)
    states = []
    for spoilt in (False, True):
        training = started(chosen)
        training.step(one_batch(0))
        if spoilt:
            before = whole_state(training)
            with torch.no_grad():
                bias = training.model.predictor.get_parameter("project.bias")
                whole = bias.clone()
                bias.fill_(float("inf"))
            _, finite = training.step(one_batch(1))
            assert not bool(finite)
            with torch.no_grad():
                bias.copy_(whole)
            assert_equal(whole_state(training), before)
        training.updates.settle()
        training.step(one_batch(2))
        assert training.updates.settle() == 2
        states.append(whole_state(training))
        rates = [group["lr"] for optimiser in training.optimisers for group in optimiser.param_groups]
        assert rates == [training.schedule.lr(1)] * len(rates)
    if device == "cpu":  # a GPU's gradients are not the same twice
        assert_equal(*states)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_does_not_walk_through_the_modules(monkeypatch, kind):
    """Walks through all modules took the host a sixth of a step of small kernels, for which a GPU waits."""
    training = started(tiny(optim=replace(tiny().optim, kind=kind)))
    training.step(one_batch(0))
    walks, real = [], torch.nn.Module.named_modules
    monkeypatch.setattr(torch.nn.Module, "named_modules", lambda *a, **k: walks.append(a[0]) or real(*a, **k))
    training.step(one_batch(1))
    assert not walks


def whole_state(training: Training) -> dict[str, torch.Tensor]:
    """A copy of all tensors of model and optimisers."""
    state = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    for number, optimiser in enumerate(training.optimisers):
        for place, values in enumerate(optimiser.state.values()):
            state |= {f"optimiser.{number}.{place}.{key}": value for key, value in values.items()}
    return {name: value.clone() for name, value in state.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_a_resumed_run_knows_how_many_steps_were_skipped(tmp_path, monkeypatch):
    """Interrupted after a step that was not finite, a run ends with the weights of one that was not interrupted."""
    real = Training.step

    interrupted_at = -1

    def stepping(self, batch):
        if batch.step == interrupted_at:
            signal.raise_signal(signal.SIGINT)
        weight = self.model.predictor.get_parameter("project.bias")
        kept = weight.detach().clone()
        if batch.step == 2:
            weight.data.fill_(float("nan"))
        result = real(self, batch)
        if batch.step == 2:
            weight.data.copy_(kept)
        return result

    monkeypatch.setattr(Training, "step", stepping)
    source = str(pictures_file(tmp_path / "pictures.npz"))
    straight, stopped = (
        trained_on(tiny(), source=source, out=str(tmp_path / name)) for name in ("straight", "stopped")
    )
    loop.pretrain(straight)
    lines = RunFolder(tmp_path / "straight").metric_lines()
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0]
    assert all(isinstance(line["loss"], float) for line in lines)  # the mean of the steps that were finite
    assert lines[-1]["lr"] == Training.start(straight, 4, Session.of(straight.speed)).schedule.lr(6)
    interrupted_at = 3
    with pytest.raises(Interrupted):
        loop.pretrain(stopped)
    interrupted_at = -1
    loop.pretrain(stopped)
    assert_equal(*(load_file(RunFolder(tmp_path / name).model / TENSORS) for name in ("straight", "stopped")))


@pytest.mark.parametrize(
    ("device", "width", "steps", "chosen", "wanted"),
    [
        ("cuda", 384, 5000, None, True),
        ("cuda", 192, 5000, None, False),
        ("cuda", 384, 4999, None, False),
        ("cpu", 768, 90000, None, False),
        ("cpu", 32, 8, True, True),
        ("cuda", 768, 90000, False, False),
    ],
)
def test_blocks_are_compiled_by_default_where_it_pays(device, width, steps, chosen, wanted):
    encoder = config.Encoder(width=width)
    settings = tiny(encoder=encoder, speed=replace(tiny().speed, compile=chosen))
    assert compiles(settings, Session(torch.device(device), "bf16"), steps) is wanted
