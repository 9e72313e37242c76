"""What finetuning has in common: the grid, the rates of the parts, the cost of what is trained."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

from iwm.evaluation.tasks import finetune, tuning
from iwm.evaluation.tasks.fitting import Learner, Trained
from iwm.model.world_model import ImageWorldModel
from iwm.verbs.finetune import Finetune
from iwm.verbs.shared import Classification


@pytest.fixture
def model() -> ImageWorldModel:
    torch.manual_seed(0)
    return ImageWorldModel(tiny())


def test_pretrained_and_random_try_the_same_grid():
    settings = Classification()
    grid = tuning.grid_of(settings)
    assert len(grid) == 6
    assert grid == tuning.grid_of(Classification(predictor="random"))
    assert len(tuning.grid_of(Classification(train="head"))) == 3


def test_learning_rates_fall_with_depth(model):
    settings = Classification(train="both")
    built = finetune.build(model, settings, ("a", "b"), 16)
    groups = tuning.groups_of(built, settings, 1e-3, 0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    own = dict(built.named_parameters())
    assert rate[id(own["head.linear.weight"])] == 1e-3
    assert rate[id(own["predictor.embed.weight"])] == pytest.approx(1e-4)
    assert rate[id(own["encoder.norm.weight"])] == pytest.approx(1e-4)
    assert rate[id(own["encoder.blocks.1.mlp.fc1.weight"])] == pytest.approx(1e-4)
    assert rate[id(own["encoder.blocks.0.mlp.fc1.weight"])] == pytest.approx(0.65e-4)
    assert rate[id(own["encoder.patch_embed.proj.weight"])] == pytest.approx(0.65**2 * 1e-4)


def test_with_nothing_pretrained_all_blocks_learn_alike_and_the_grid_is_the_same(model):
    o = Finetune(run="run", data="data", train="encoder")
    twin, control = tuning.nothing_pretrained(model, o)
    built = finetune.build(twin, control, ("a", "b"), 16)
    groups = tuning.groups_of(built, control, 1e-3, 1.0)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3] * len(groups))
    assert tuning.grid_of(control) == tuning.grid_of(o)
    trained = Trained(Learner(built, built, groups), {}, [], 1.0)
    assert tuning.facts_of_control(control, trained)["random_encoder_layer_decay"] == 1
    assert "random_encoder_layer_decay" not in tuning.facts_of_control(replace(control, train="head"), trained)


def test_flops_against_a_formula(model):
    built = finetune.build(model, Classification(train="head"), ("a", "b"), 16)
    n, d, patch = 16, 32, 4
    block = 2 * n * d * (3 * d + d + 8 * d) + 2 * 2 * n * n * d
    head = 2 * (d * d + n * d * 2 * d + 8 * d * d + 2 * d) + 2 * 2 * n * d
    assert tuning.flops_of(built) == 2 * n * 3 * patch**2 * d + 2 * block + head
