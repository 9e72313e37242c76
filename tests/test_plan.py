from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny
from torch.utils.flop_counter import FlopCounterMode

from iwm import config, recipes
from iwm.masks import sample_masks
from iwm.model import ImageWorldModel
from iwm.plan import cost
from iwm.views import make_views


@pytest.mark.parametrize("conditioning", ["none", "sequence", "feature", "adaln"])
@pytest.mark.parametrize(("predict", "queries"), [("all", 1.0), ("all", 0.4), ("dropped", 1.0), ("visible", 1.0)])
def test_cost_against_counting_the_real_step(conditioning, predict, queries):
    masks = config.Masks(predict=predict, queries=queries)
    settings = tiny(predictor=replace(tiny().predictor, conditioning=conditioning), masks=masks)
    model = ImageWorldModel(settings)
    model.predictor.open_gates()
    images, indices = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), np.arange(4)
    views = make_views(images, model.space, settings.actions, 0, 0, indices, "cpu")
    masks = sample_masks(settings.masks, model.grid, 0, 0, indices, "cpu")
    with FlopCounterMode(display=False) as counter:
        model(views, masks).loss.backward()
    # The counter also counts what no gradient is needed for: the image's own gradient is not taken, ours says 3 x.
    assert cost(settings).train_flops == pytest.approx(counter.get_total_flops() / 4, rel=0.06)


@pytest.mark.parametrize("name", ["demo", "cifar10", "imagenet-vitb16-equi"])
def test_parameters_against_the_real_model(name):
    settings = recipes.get(name)
    model, counted = ImageWorldModel(settings), cost(settings)
    assert counted.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())
    assert counted.predictor_parameters == sum(p.numel() for p in model.predictor.parameters())
