from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm import config
from iwm.actions.views import make_views
from iwm.model.masks import Masks, sample_masks
from iwm.model.objectives import PatchPrediction, objective_of
from iwm.model.objectives.prediction import squared_error
from iwm.model.objectives.spread import variance_covariance
from iwm.model.world_model import ImageWorldModel


def test_loss_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wanted = ((a.double() - b.double()) ** 2).sum() / 24
    assert squared_error(a, b).item() == pytest.approx(wanted.item())


def test_smooth_l1_is_hubers_with_threshold_1():
    settings = tiny(objective=config.Objective(error="smooth_l1"))
    a, b = 3 * torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    distance = (a.double() - b.double()).abs()
    wanted = torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()
    objectives = [objective_of(settings), objective_of(tiny())]
    huber, squared = (cast(PatchPrediction, objective).compare(a, b).item() for objective in objectives)
    assert huber == pytest.approx(wanted.item())
    assert squared == pytest.approx(float((distance**2).mean()))


DIAL = config.Objective(invariance_weight=0.7, projector_dim=16)


@pytest.mark.parametrize(
    "objective", [config.Objective(), config.Objective(kind="pixels"), DIAL], ids=["latent", "pixels", "invariance"]
)
def test_several_sources_cost_one_pass_of_the_teacher_and_their_losses_are_averaged(images, objective, monkeypatch):
    """Against the model of one source, shown each of them with the same target."""
    settings = tiny(objective=objective, masks=config.Masks(sources=3))
    torch.manual_seed(0)
    model, indices = ImageWorldModel(settings).eval(), np.arange(8)
    views = make_views(images, model.space, settings.actions, 0, 4, indices, "cpu", sources=3)
    masks = sample_masks(settings.masks, model.grid, 0, 4, indices, "cpu")
    seen: list[int] = []
    real = model.target_encoder.tokens

    def counting(pixels: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        seen.append(len(pixels))
        return real(pixels, *more, **named)

    monkeypatch.setattr(model.target_encoder, "tokens", counting)
    output = model(views, masks)
    assert seen == ([] if objective.kind == "pixels" else [8])
    latents = []
    for number in range(3):
        rows = slice(8 * number, 8 * (number + 1))
        one = replace(
            views,
            source=views.source[rows],
            action=views.action[rows],
            source_parameters=views.source_parameters[rows],
        )
        own = model(one, Masks(masks.context[rows], masks.predicted[rows]))
        latents.append(own.latent.item())
        torch.testing.assert_close(output.prediction[rows], own.prediction)
        torch.testing.assert_close(output.target[rows], own.target)
    assert output.latent.item() == pytest.approx(sum(latents) / 3, rel=1e-5)
    assert (output.invariance is None) is not (objective == DIAL)


def test_the_change_of_targets_is_measured_at_the_first_source(images):
    """objective.target_norm change: the statistics are those of one source."""
    settings, statistics = tiny(objective=config.Objective(target_norm="change")), []
    for sources in (1, 3):
        torch.manual_seed(0)
        model, indices = ImageWorldModel(settings), np.arange(8)
        model.calibrate(make_views(images, model.space, settings.actions, 0, 0, indices, "cpu", sources=sources))
        model.target_norm.fold()
        statistics.append(model.target_norm.variance)
    assert torch.equal(*statistics)


@pytest.mark.parametrize("kind", ["latent", "pixels"])
def test_small_images_early_in_training_have_resampled_positions(images, kind):
    """data.start_size: encoder and predictor know the smaller grid, targets and spread are of its patches."""
    settings = tiny(objective=config.Objective(kind=kind, target_norm="batch", variance=0.5, covariance=0.1))
    torch.manual_seed(0)
    model, indices = ImageWorldModel(settings).eval(), np.arange(8)
    model.predictor.open_gates()
    views = make_views(images[:, :, :8, :12], model.space, settings.actions, 0, 4, indices, "cpu")
    masks = sample_masks(settings.masks, (2, 3), 0, 4, indices, "cpu")
    output = model(views, masks)
    tokens = model.encoder.tokens(views.source, masks.context)
    wanted = {"context": masks.context, "queries": masks.predicted, "grid": (2, 3)}
    torch.testing.assert_close(output.prediction, model.predictor(tokens, views.action, **wanted))
    truth = model.target_norm(model.raw_target(views.target))
    assert truth.shape[1] == 6
    torch.testing.assert_close(output.target, truth)
    terms = variance_covariance(tokens, masks.context, 6)
    torch.testing.assert_close(output.loss - output.latent, 0.5 * terms[0] + 0.1 * terms[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_whole_sources_move_the_encoder_by_a_share_and_the_predictor_in_full(images, share):
    """objective.whole_gradient, against the gradients without it; steps that drop patches are as ever."""
    asked, gradients, losses = config.Masks(predict="all", whole=0.5), [], []
    for own in (1.0, share):
        objective = config.Objective(target_norm="batch", variance=0.5, covariance=0.1, whole_gradient=own)
        torch.manual_seed(0)
        settings = tiny(objective=objective, masks=asked)
        model, indices = ImageWorldModel(settings).eval(), np.arange(8)
        model.predictor.open_gates()
        for step in (0, 1):
            views = make_views(images, model.space, settings.actions, 0, step, indices, "cpu", clean=step == 1)
            model.zero_grad()
            loss = model(views, sample_masks(asked, model.grid, 0, step, indices, "cpu")).loss
            loss.backward()
            losses.append(loss.item())
            parts = (model.encoder, model.predictor)
            gradients.append([[p.grad for p in part.parameters() if p.grad is not None] for part in parts])
    assert losses[:2] == losses[2:]
    for one, other in zip(gradients[0], gradients[2], strict=True):
        torch.testing.assert_close(one, other)
    (encoder, predictor), (held, taught) = gradients[1], gradients[3]
    assert max(float(grad.abs().max()) for grad in encoder) > 1e-4
    torch.testing.assert_close(held, [share * grad for grad in encoder if share], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(taught, predictor)


def test_whole_sources_leave_the_encoder_alone_where_the_predictor_says_the_change(images):
    """predictor.residual adds the source's own tokens, which are the encoder's too."""
    objective = config.Objective(target_norm="batch", whole_gradient=0.0)
    asked = config.Masks(predict="visible", whole=0.5)
    settings = tiny(objective=objective, masks=asked, predictor=config.Predictor(residual=True))
    model, indices = ImageWorldModel(settings), np.arange(8)
    for step, learns in ((0, True), (1, False)):
        views = make_views(images, model.space, settings.actions, 0, step, indices, "cpu", clean=step == 1)
        model.zero_grad()
        model(views, sample_masks(asked, model.grid, 0, step, indices, "cpu")).loss.backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters()) == learns
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.predictor.parameters())


def test_steps_that_leave_the_encoder_alone_cost_no_backward_pass_of_it(images):
    """`step_flops` against the operations that PyTorch counts in a step on whole sources."""
    asked, counts, stated = config.Masks(predict="all", whole=0.5), [], []
    for share in (1.0, 0.0):
        settings = tiny(objective=config.Objective(target_norm="batch", whole_gradient=share), masks=asked)
        model, indices = ImageWorldModel(settings), np.arange(8)
        views = make_views(images, model.space, settings.actions, 0, 1, indices, "cpu", clean=True)
        masks = sample_masks(asked, model.grid, 0, 1, indices, "cpu")
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(views, masks).loss.backward()
        counts.append(counter.get_total_flops() / len(indices))
        stated.append(model.objective.step_flops(model.space.dim) / asked.whole)  # half of the steps are like this one
    assert stated[0] - stated[1] == pytest.approx(counts[0] - counts[1], rel=0.05)
