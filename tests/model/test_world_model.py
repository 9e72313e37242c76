from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.actions.views import make_views
from iwm.model.masks import sample_masks
from iwm.model.vit import gather_tokens
from iwm.model.world_model import ImageWorldModel, Tokens, _move_together
from iwm.runtime.errors import UserError


def build(**groups) -> ImageWorldModel:
    torch.manual_seed(0)
    return ImageWorldModel(tiny(**groups))


def inputs(model: ImageWorldModel, images: torch.Tensor):
    s, indices = model.settings, np.arange(len(images))
    views = make_views(images, model.space, s.actions, 0, 0, indices, "cpu")
    return views, sample_masks(s.masks, model.grid, 0, 0, indices, "cpu")


@pytest.mark.parametrize("predict", ["all", "dropped", "visible"])
@pytest.mark.parametrize("norm", ["token", "batch"])
def test_the_loss_is_equation_two(images, predict, norm):
    model = build(masks=config.Masks(predict=predict), objective=config.Objective(target_norm=norm)).eval()
    views, masks = inputs(model, images)
    with torch.no_grad():
        output = model(views, masks)
        target = model.target_norm(model.target_encoder.tokens(views.target))
        context = model.encoder.tokens(views.source, masks.context)
        total = 0.0
        for b in range(len(images)):
            q = masks.predicted[b : b + 1]
            guess = model.predictor(
                context[b : b + 1], views.action[b : b + 1], context=masks.context[b : b + 1], queries=q
            )
            total += (guess - gather_tokens(target[b : b + 1], q)).double().square().sum().item()
    assert output.loss.item() == pytest.approx(total / output.prediction.numel(), rel=1e-5)


@pytest.mark.parametrize("conditioning", ["none", "sequence", "feature", "adaln"])
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(images, conditioning):
    model = build(predictor=replace(tiny().predictor, conditioning=conditioning)).train()
    model.predictor.open_gates()
    model(*inputs(model, images)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0 or "modulation" in name or "condition" in name, name
        else:
            assert parameter.grad is None, name


def test_the_teacher_is_the_exponential_average(images):
    model = build()
    before = [p.clone() for p in model.target_encoder.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(torch.randn_like(p))
    model.after_step(0.9)
    for old, student, teacher in zip(
        before, model.encoder.parameters(), model.target_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.9 * old + 0.1 * student.detach())


def test_a_gpu_moves_the_teacher_as_a_cpu_does():
    """The calls that a GPU makes, here on the CPU; a step that was not finite (a share of 0) moves nothing."""
    generator = torch.Generator().manual_seed(0)
    students = [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,))]
    for share in (torch.tensor(0.004), torch.tensor(0.0)):
        ours, theirs = ([torch.ones_like(s) for s in students] for _ in range(2))
        _move_together(ours, students, share)
        for teacher, student in zip(theirs, students, strict=True):
            teacher.lerp_(student, share)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)
    assert all(bool((one == 1).all()) for one in ours)


def test_a_frozen_encoder_stays(images):
    model = build(encoder=replace(tiny().encoder, train="none")).train()
    model(*inputs(model, images)).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert any(p.grad is not None for p in model.predictor.parameters())


@torch.no_grad()
def test_use_after_training(images):
    world = build().eval()
    tokens = world.encode(images)
    assert tokens.values.shape == (8, 16, 32)
    assert tokens.grid == (4, 4)
    future = world.predict(tokens, world.action(brightness=0.3, hue=-0.05))
    assert future.values.shape == tokens.values.shape
    torch.testing.assert_close(world.target(images).values, world.target_norm(tokens.values))
    torch.testing.assert_close(tokens.pooled, tokens.values.mean(1))


@torch.no_grad()
def test_non_square_images_keep_their_grid():
    world = build().eval()
    images = torch.rand(2, 3, 24, 32)
    tokens = world.encode(images)
    assert tokens.grid == (6, 8)
    assert world.predict(tokens, world.action()).values.shape == (2, 48, 32)
    with pytest.raises(UserError, match="3 actions were given for 2 images"):
        world.predict(tokens, world.action().expand(3, -1))


@torch.no_grad()
def test_the_teacher_is_asked_unless_the_student_is_named(images):
    world = build().eval()
    torch.nn.init.constant_(world.encoder.get_parameter("norm.weight"), 2.0)
    assert not torch.equal(world.encode(images).values, world.encode(images, student=True).values)
    assert isinstance(world.encode(images), Tokens)


def test_target_layers_must_exist():
    with pytest.raises(UserError, match="target_layers"):
        build(objective=config.Objective(target_layers=5))


def test_an_encoder_that_stands_still_has_no_teacher_to_move():
    model = ImageWorldModel(tiny(encoder=replace(tiny().encoder, train="none")))
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    model.after_step(0.9)
    assert all(torch.equal(value, before[name]) for name, value in model.target_encoder.state_dict().items())
