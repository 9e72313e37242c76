from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm import config, recipe_book
from iwm.actions.views import make_views
from iwm.model.cost import cost
from iwm.model.masks import sample_masks
from iwm.model.objectives import objective_of
from iwm.model.objectives.joint import comparison_of
from iwm.model.world_model import ImageWorldModel


def counted_flops(model: ImageWorldModel, sources: int = 1) -> float:
    """One image's share of a step that is really taken, forward and backward, by PyTorch's counter."""
    settings, indices = model.settings, np.arange(4)
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    views = make_views(images, model.space, settings.actions, 0, 0, indices, "cpu", sources=sources)
    drawn = sample_masks(settings.masks, model.grid, 0, 0, indices, "cpu")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(views, drawn).loss.backward()
    return counter.get_total_flops() / 4


@pytest.mark.parametrize("conditioning", ["none", "sequence", "feature", "adaln"])
@pytest.mark.parametrize(
    "masks",
    [
        *(config.Masks(predict="all", queries=0.4), config.Masks(predict="all", whole=1.0)),
        *(config.Masks(predict="dropped"), config.Masks(predict="visible")),
    ],
    ids=str,
)
def test_cost_against_counting_the_real_step(conditioning, masks):
    settings = tiny(predictor=replace(tiny().predictor, conditioning=conditioning), masks=masks)
    model = ImageWorldModel(settings)
    model.predictor.open_gates()
    # The counter also counts what no gradient is needed for: the image's own gradient is not taken, ours says 3 x.
    assert cost(settings).train_flops == pytest.approx(counted_flops(model), rel=0.06)


@pytest.mark.parametrize("objective", [config.Objective(), config.Objective(invariance_weight=1.0, projector_dim=32)])
def test_cost_of_several_sources_against_counting_their_step(objective):
    masks = config.Masks(predict="all", queries=0.4, sources=3)
    settings = tiny(objective=objective, masks=masks, encoder=replace(tiny().encoder, width=64))
    model = ImageWorldModel(settings)
    model.predictor.open_gates()
    assert cost(settings).train_flops == pytest.approx(counted_flops(model, sources=3), rel=0.06)


def test_cost_with_registers_against_counting_the_real_step():
    settings = tiny(encoder=replace(tiny().encoder, registers=8, width=64))
    model = ImageWorldModel(settings)
    model.predictor.open_gates()
    assert cost(settings).train_flops == pytest.approx(counted_flops(model), rel=0.06)
    assert cost(settings).encoder_parameters == sum(p.numel() for p in model.encoder.parameters())


def test_cost_of_images_that_grow_is_the_mean_of_both_sizes():
    small, large = tiny(data=config.Data(image_size=8)), tiny(data=config.Data(image_size=16))
    grown = tiny(data=config.Data(image_size=16, start_size=8, start_share=0.25))
    wanted = 0.25 * cost(small).train_flops + 0.75 * cost(large).train_flops
    assert cost(grown).train_flops == pytest.approx(wanted)
    assert replace(cost(grown), train_flops=0) == replace(cost(large), train_flops=0)


FAMILIES = [f"{family}-cifar10" for family in recipe_book.FAMILIES]


@pytest.mark.parametrize("name", ["demo", "cifar10", "imagenet-vitb16-equi", *FAMILIES])
def test_parameters_against_the_real_model(name):
    settings = recipe_book.get(name)
    model, counted = ImageWorldModel(settings), cost(settings)
    predicts = objective_of(settings).predicts
    comparison = None if predicts else comparison_of(model)
    said = [model.predictor] if comparison is None else [comparison.projector, comparison.predictor]
    assert counted.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())
    assert counted.predictor_parameters == sum(p.numel() for part in said for p in part.parameters())


@pytest.mark.parametrize("conditioning", ["sequence", "feature", "adaln"])
def test_an_action_has_as_many_components_as_its_set(conditioning):
    """`camera` has 4, not the photometric set's 7; each is a token of the conditioning `sequence`."""
    settings = tiny(
        predictor=replace(tiny().predictor, conditioning=conditioning), actions=config.Actions(set="camera")
    )
    model = ImageWorldModel(settings)
    assert model.space.dim == 4
    assert cost(settings).predictor_parameters == sum(p.numel() for p in model.predictor.parameters())
    assert cost(settings).train_flops != cost(replace(settings, actions=config.Actions())).train_flops


@pytest.mark.parametrize("layer", [0, 1])
def test_cost_with_the_invariance_term_against_counting_its_step(layer):
    """Wide enough that the first layer's missing gradient of the image does not tell."""
    encoder = replace(tiny().encoder, layer=layer, depth=3, width=64)
    settings = tiny(encoder=encoder, objective=config.Objective(invariance_weight=1.0, projector_dim=32))
    model = ImageWorldModel(settings)
    model.predictor.open_gates()
    assert cost(settings).train_flops == pytest.approx(counted_flops(model), rel=0.06)
    own = [model.predictor, model.get_submodule("invariance")]
    assert cost(settings).predictor_parameters == sum(p.numel() for part in own for p in part.parameters())


@pytest.mark.parametrize("family", ["mae", "moco", "byol"])
def test_cost_of_a_family_against_counting_its_step(family):
    settings = recipe_book.FAMILIES[family](tiny())
    settings = replace(settings, objective=replace(settings.objective, projector_width=64, freeze_patches=False))
    model = ImageWorldModel(settings)
    assert cost(settings).train_flops == pytest.approx(counted_flops(model), rel=0.06)
