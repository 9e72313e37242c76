"""The benchmark's plain twin computes what the package computes, or the comparison of their speeds means nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from benchmarks import scaling
from benchmarks.captured import CapturedTraining, Run
from benchmarks.twin import Twin, TwinTraining
from iwm import config
from iwm.actions.views import make_views
from iwm.data.loader import Batch
from iwm.model.masks import sample_masks
from iwm.model.vit import compile_blocks
from iwm.runtime.devices import CPU, Session
from iwm.training.step import Training


def test_the_plan_of_large_trainings_is_the_one_that_the_recipes_give():
    page = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()
    missing = [line for line in scaling.table() if line not in page]
    assert not missing, "python -m benchmarks.scaling says otherwise: " + "\n".join(missing)


PAPER = {
    "objective": config.Objective(target_norm="token"),
    "predictor": replace(tiny().predictor, conditioning="feature"),
    "masks": config.Masks(predict="dropped"),
}
SMALL_DATA = {"objective": config.Objective(target_norm="batch", target_layers=2, variance=0.1, covariance=0.004)}
IJEPA = PAPER | {"predictor": replace(tiny().predictor, conditioning="none")}


@pytest.mark.parametrize("groups", [PAPER, SMALL_DATA, IJEPA], ids=["paper", "small-data", "ijepa"])
def test_the_twin_takes_the_same_steps(groups):
    settings = tiny(**groups)
    training = Training.start(settings, 4, CPU)
    twin = TwinTraining(Twin(training.model), training.schedule, "fp32")
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(16)
    for step in range(4):  # later losses also see the optimiser, the EMA and the target statistics
        views = make_views(images, training.model.space, settings.actions, 0, step, indices, "cpu")
        masks = sample_masks(settings.masks, training.model.grid, 0, step, indices, "cpu")
        theirs = twin.step(step, views, masks)
        ours, finite = training.step(Batch(step=step, indices=indices, images=images, labels=None, waited=0.0))
        assert bool(finite)
        assert float(ours) == pytest.approx(float(theirs), rel=2e-4), f"step {step}"
    student = twin.twin.student.patches.weight
    torch.testing.assert_close(student, training.model.encoder.patch_embed.proj.weight, atol=2e-4, rtol=1e-3)
    teacher = twin.twin.teacher.patches.weight
    torch.testing.assert_close(teacher, training.model.target_encoder.patch_embed.proj.weight, atol=2e-4, rtol=1e-3)


def test_a_captured_step_takes_the_same_steps():
    """The graph's stand-in computes anew into the results of the first time, and leaves nothing else behind, as a
    replay does. Weights, teacher and target statistics are then those of plain training, bit for bit."""
    settings = tiny(**SMALL_DATA, masks=config.Masks(predict="all", whole=0.5))
    captures = []

    def stand_in(run: Run):
        results = run()
        captures.append(len(results))

        def replay() -> None:
            for kept, new in zip(results, run(), strict=True):
                kept.copy_(new)
            captured.model.zero_grad()
            captured.model.target_norm.pending = None

        return results, replay

    plain, captured = Training.start(settings, 6, CPU), CapturedTraining.start(settings, 6, CPU)
    assert isinstance(captured, CapturedTraining)
    captured.capture = stand_in
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        batch = Batch(step=step, indices=np.arange(16), images=images, labels=None, waited=0.0)
        (ours, finite), (theirs, _) = captured.step(batch), plain.step(batch)
        assert bool(finite)
        assert torch.equal(ours, theirs)
    assert len(captures) == 2, "one for parts, one for whole images"
    state = captured.model.state_dict()
    assert not [name for name, value in plain.model.state_dict().items() if not torch.equal(value, state[name])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_graph_of_a_step_takes_the_same_steps_on_a_gpu(compiled):
    """With crops that differ from step to step: a graph that reads other memory than is written repeats its first."""
    settings = tiny(**SMALL_DATA, masks=config.Masks(predict="all", whole=0.5))
    settings = replace(settings, speed=replace(settings.speed, device="cuda"))
    session = Session.of(settings.speed)
    prepare = compile_blocks if compiled else (lambda model: None)
    plain = Training.start(settings, 12, session)
    captured = CapturedTraining.start(settings, 12, session, prepare)
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator).cuda()
        batch = Batch(step=step, indices=np.arange(16), images=images, labels=None, waited=0.0)
        (ours, finite), (theirs, _) = captured.step(batch), plain.step(batch)
        assert bool(finite)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-3), f"step {step}"
    state = captured.model.state_dict()
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-3, rtol=1e-2), name
