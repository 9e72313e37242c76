from dataclasses import replace

import pytest
import yaml
from conftest import tiny

from iwm import config, recipe_book
from iwm.config import Config
from iwm.runtime import fields
from iwm.runtime.errors import UserError
from iwm.training.validation import validate


@pytest.mark.parametrize("name", recipe_book.RECIPES)
def test_yaml_round_trip(name, tmp_path):
    settings = replace(recipe_book.get(name), actions=config.Actions(blur_sigma=(0.3, 1.5)))
    config.save(settings, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == settings


def test_flatten():
    assert fields.flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_an_unreadable_file_is_empty_when_unchecked(tmp_path):
    path = tmp_path / "config.yaml"
    assert config.read_unchecked(path) == {}
    for text in ("a: [", "3", ""):
        path.write_text(text)
        assert config.read_unchecked(path) == {}
    path.write_text("old: {setting: 1}")
    assert config.read_unchecked(path) == {"old": {"setting": 1}}


def test_an_unknown_setting_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"'optim.batchsize': did you mean 'batch_size'"):
        fields.from_dict(Config, {"optim": {"batchsize": 3}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": {"epochs": "many"}}, "'optim.epochs' must be int, got 'many'"),
        ({"optim": {"epochs": True}}, "'optim.epochs' must be int"),
        ({"optim": {"lr": "1e-3x"}}, "'optim.lr' must be float"),
        ({"data": {"crop_area": [0.3]}}, "'data.crop_area' must be"),
        ({"predictor": {"init": "xavir"}}, "did you mean 'xavier'"),
        ({"optim": 3}, "'optim' must be a group"),
        ({"run": {"resume": 1}}, "'run.resume' must be bool"),
    ],
)
def test_a_wrong_type_is_named(values, said):
    with pytest.raises(UserError) as caught:
        fields.from_dict(Config, values)
    assert said in str(caught.value)


def test_whole_numbers_and_yamls_idea_of_a_fraction_are_welcome():
    assert fields.from_dict(Config, {"optim": {"lr": 1}}).optim.lr == 1.0
    assert fields.from_dict(Config, yaml.safe_load("optim: {lr: 1e-3}")).optim.lr == 1e-3


@pytest.mark.parametrize(("text", "said"), [("a: [", "not valid YAML"), ("3", "no settings")])
def test_a_damaged_file_is_named(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        config.load(path)
    with pytest.raises(UserError, match="There is no file"):
        config.load(tmp_path / "absent.yaml")


def test_the_papers_recipe_is_untouched():
    """Design section 3: the values the paper's reproduction stands on."""
    s = recipe_book.get("imagenet-vitb16-equi")
    assert (s.encoder.width, s.encoder.depth, s.encoder.heads, s.encoder.patch_size) == (768, 12, 12, 16)
    assert (s.predictor.depth, s.predictor.width, s.predictor.conditioning) == (18, 384, "feature")
    assert (s.masks.blocks, s.masks.block_area, s.masks.predict) == (4, (0.15, 0.2), "dropped")
    assert s.objective == config.Objective(target_norm="token", target_layers=1)
    assert (s.optim.epochs, s.optim.batch_size, s.optim.lr, s.optim.ema, s.optim.stretch) == (
        300,
        2048,
        1e-3,
        0.996,
        1.25,
    )
    assert s.optim.kind == "adamw"
    assert s.actions == config.Actions()
    assert recipe_book.get("imagenet-vitb16-inv").predictor.depth == 12
    assert (recipe_book.get("imagenet-vitl16").predictor.depth, recipe_book.get("imagenet-vitl16").predictor.width) == (
        36,
        512,
    )


def test_an_unknown_recipe_is_named_with_its_neighbour():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        recipe_book.get("cifar")


def test_families_are_transformations_of_the_sizes():
    assert recipe_book.get("mae-imagenet-vitb16").optim.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert recipe_book.get("mae-imagenet-vitb16").predictor.depth == 8
    assert recipe_book.get("moco-imagenet-vitb16").optim.epochs == 300
    for family in recipe_book.FAMILIES:
        size, own = recipe_book.get("cifar10"), recipe_book.get(f"{family}-cifar10")
        assert (own.data.image_size, own.optim.epochs) == (size.data.image_size, size.optim.epochs)
        assert (own.encoder.width, own.encoder.depth) == (size.encoder.width, size.encoder.depth)
        assert recipe_book.get(f"{family}-demo").run.out == f"runs/{family}-demo", "another run folder than the demo's"
        moved_by = (own.optim.kind, own.optim.lr)
        assert moved_by == (("muon", 3e-3) if family == "ijepa" else ("adamw", 1.5e-3)), "as measured"


@pytest.mark.parametrize("name", recipe_book.RECIPES)
def test_every_recipe_makes_sense(name):
    validate(recipe_book.get(name))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": {"batch_size": 0}}, "optim.batch_size is 0; give 1 or more"),
        ({"optim": {"batch_size": -4}}, "give 1 or more"),
        ({"optim": {"epochs": 0}}, "optim.epochs is 0"),
        ({"optim": {"accumulate": 0}}, "optim.accumulate is 0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan"),
        ({"optim": {"ema": 2}}, "optim.ema is 2.0; give a number from 0 to 1"),
        ({"optim": {"betas": [2, 3]}}, "optim.betas"),
        ({"optim": {"stretch": 0}}, "optim.stretch is 0"),
        ({"encoder": {"heads": 0}}, "encoder.heads is 0"),
        ({"encoder": {"patch_size": 0}}, "encoder.patch_size is 0"),
        ({"predictor": {"width": 0}}, "predictor.width is 0"),
        ({"run": {"log_every": 0}}, "run.log_every is 0"),
        ({"run": {"save_every": 0}}, "run.save_every is 0"),
        ({"data": {"flip": 7}}, "data.flip is 7.0"),
        ({"data": {"crop_area": [1.0, 0.3]}}, "the smaller one first"),
        ({"data": {"crop_area": [2, 3]}}, "an area is a fraction"),
        ({"speed": {"threads": -1}}, "speed.threads is -1"),
    ],
)
def test_nonsense_is_refused_before_anything_is_done(values, said):
    with pytest.raises(UserError) as caught:
        validate(fields.from_dict(Config, values))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"views": config.Views(geometry="independent")}, "views.geometry independent"),
        ({"objective": config.Objective(kind="pixels", target_layers=2)}, "objective.target_layers averages"),
        ({"objective": config.Objective(kind="joint")}, "masks.sampler none"),
        ({"masks": config.Masks(sampler="none")}, "drops no patch to predict"),
        (
            {"objective": config.Objective(kind="joint", variance=0.1), "masks": config.Masks(sampler="none")},
            "no part of objective.kind joint",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(change, sentence):
    with pytest.raises(UserError, match=sentence):
        validate(tiny(**change))
