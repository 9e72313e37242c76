"""Nonsense is refused before any work, in a sentence that names the setting."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny

import iwm
from iwm import config, recipe_book
from iwm.actions import action_sets
from iwm.actions.transformation import Transformation
from iwm.config import Config
from iwm.model.conditioning import CONDITIONINGS
from iwm.runtime import fields
from iwm.runtime.errors import UserError
from iwm.sweeps.axes import cells_of
from iwm.training.validation import validate, with_encoder, without_effect
from iwm.verbs.sweep import Axes


@pytest.mark.parametrize("name", [name for name in recipe_book.RECIPES if name != "on-encoder"])
def test_every_recipe_makes_sense(name):
    validate(recipe_book.get(name))


def test_the_recipe_on_encoders_of_others_asks_for_one():
    with pytest.raises(UserError, match=r"none is named; give its name, --encoder.name timm:NAME"):
        validate(recipe_book.get("on-encoder"))


@pytest.mark.parametrize(
    ("name", "size"), [("swin_tiny_patch4_window7_224", 64), ("focalnet_tiny_srf", 224), ("beit_base_patch16_224", 64)]
)
def test_an_encoder_of_others_that_takes_no_such_images_is_refused(name, size):
    """A model of one size only, and one whose last norm takes maps."""
    base = recipe_book.get("on-encoder")
    encoder = replace(base.encoder, name=f"timm:{name},weights=random", layer=0)
    settings = replace(base, encoder=encoder, data=config.Data(image_size=size))
    with pytest.raises(UserError, match=rf"{name},weights=random gives no tokens of images of {size} px after block"):
        validate(with_encoder(settings))


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
        ({"masks": {"queries": 0}}, "masks.queries is 0.0; give a number above 0, up to 1"),
        ({"masks": {"queries": 1.5}}, "masks.queries is 1.5"),
        ({"encoder": {"std": [0, 1, 1]}}, "encoder.std is 0.0 1.0 1.0; give numbers above 0"),
        ({"run": {"seed": 2**63}}, "run.seed is 9223372036854775808; give less than 2**62"),
        ({"encoder": {"width": 100}}, "encoder.width 100 must be a multiple of 4 and of encoder.heads (12)"),
        ({"encoder": {"heads": 5}}, "encoder.width 768 must be a multiple of 4 and of encoder.heads (5)"),
        ({"predictor": {"width": 126}}, "predictor.width 126 must be a multiple of 4"),
        ({"data": {"image_size": 100}}, "Images of 100 px do not divide into patches of 16 px"),
        ({"data": {"image_size": 16}}, "A grid of 1 x 1 patches cannot be masked"),
        ({"actions": {"hue": 0.7}}, "Setting 'actions.hue' is 0.7; it must be between 0 and 0.5 turns"),
        ({"actions": {"set": "cammera"}}, "There is no action set 'cammera'"),
        ({"objective": {"target_layers": 13}}, "objective.target_layers is 13; it must lie between 1 and"),
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
            {"encoder": replace(tiny().encoder, registers=4, name="timm:vit_tiny_patch16_224")},
            r"encoder\.registers are of an encoder of ours",
        ),
        ({"data": config.Data(image_size=16, start_size=16)}, r"give less than data\.image_size \(16\), or 0"),
        (
            {"data": config.Data(image_size=16, start_size=6)},
            r"data\.start_size \(6\) must be two or more patches of 4",
        ),
        ({"data": config.Data(image_size=16, start_size=4)}, "a multiple of 4, 8 or more"),
        ({"data": config.Data(image_size=16, start_size=8, start_share=1.0)}, "images would never grow"),
        ({"data": config.Data(image_size=16, start_size=8, start_share=0.0)}, "images would never grow"),
        (
            {"data": config.Data(image_size=16, start_share=1.5)},
            r"data\.start_share is 1\.5; give a number from 0 to 1",
        ),
        (
            {
                "data": config.Data(image_size=32, start_size=16),
                "encoder": replace(tiny().encoder, name="timm:vit_tiny_patch16_224"),
            },
            r"data\.start_size shows small images to an encoder of ours",
        ),
        (
            {"actions": config.Actions(clean="either", source_from="target")},
            "changes the target once more, so no source is clean; give crop",
        ),
        (
            {
                "actions": config.Actions(clean="target"),
                "views": config.Views(geometry="independent"),
                "objective": config.Objective(kind="joint"),
                "masks": config.Masks(sampler="none"),
            },
            r"actions\.clean target is of two views of one crop \(views\.geometry shared\); give none",
        ),
        ({"actions": config.Actions(clean="both")}, r"in the steps of masks\.whole alone; give a share above 0"),
        (
            {
                "actions": config.Actions(clean="both"),
                "masks": config.Masks(whole=0.5),
                "objective": config.Objective(target_norm="change"),
            },
            r"actions\.clean both changes none in most steps; give target_norm batch or token",
        ),
        (
            {
                "actions": config.Actions(clean="both"),
                "masks": config.Masks(whole=0.5),
                "objective": config.Objective(target_norm="batch", invariance_weight=1.0),
            },
            r"actions\.clean both makes them the same in most steps; give 0",
        ),
        (
            {
                "masks": config.Masks(whole=0.5),
                "objective": config.Objective(target_norm="batch", invariance_weight=1.0, whole_gradient=0.0),
            },
            r"would train it by them all the same; give 1, or a weight of 0",
        ),
        ({"run": replace(tiny().run, seed=-1)}, r"run\.seed is -1; give 0 or more"),
        ({"masks": config.Masks(sources=0)}, r"masks\.sources is 0; give 1 or more"),
        (
            {"objective": config.Objective(kind="joint"), "masks": config.Masks(sampler="none", sources=2)},
            r"masks\.sources share the target of a prediction of patches, objective\.kind joint is none; give 1",
        ),
        (
            {"objective": config.Objective(whole_gradient=0.0)},
            r"objective\.whole_gradient 0 sets the steps of masks\.whole apart from those that drop patches; give 1",
        ),
        (
            {
                "objective": config.Objective(kind="joint", whole_gradient=0.5),
                "masks": config.Masks(sampler="none", whole=0.5),
            },
            r"objective\.whole_gradient 0\.5 sets the steps",
        ),
        (
            {"objective": config.Objective(kind="joint", variance=0.1), "masks": config.Masks(sampler="none")},
            "no part of objective.kind joint",
        ),
        (
            {"objective": config.Objective(kind="joint"), "masks": config.Masks(sampler="none", queries=0.5)},
            r"objective\.kind joint predicts no patches, so masks\.queries chooses none; give 1",
        ),
        (
            {
                "objective": config.Objective(kind="joint"),
                "masks": config.Masks(sampler="none", whole=0.25),
                "views": config.Views(geometry="independent"),
            },
            r"masks\.whole shows the unchanged crop as source, .* both changed; give 0",
        ),
        (
            {
                "objective": config.Objective(kind="joint"),
                "masks": config.Masks(sampler="none"),
                "encoder": replace(tiny().encoder, train="none"),
            },
            r"objective\.kind joint trains the encoder, and here it stands still; give encoder\.train all\.",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(change, sentence):
    with pytest.raises(UserError, match=sentence):
        validate(tiny(**change))


class Scaled(iwm.Conditioning):
    """One of the user's own that looks at what it draws, of which there is nothing on the device "meta"."""

    name = "scaled"

    def build(self, predictor):
        super().build(predictor)
        assert float(torch.ones(1)) == 1


def test_classes_of_ones_own_are_not_built_without_values(monkeypatch):
    monkeypatch.setitem(CONDITIONINGS, "scaled", Scaled)
    own = replace(tiny().predictor, conditioning="scaled")
    validate(tiny(predictor=own))
    with pytest.raises(UserError, match=r"encoder\.width 30 must be"):
        validate(tiny(predictor=own, encoder=replace(tiny().encoder, width=30)))


def test_random_numbers_drawn_later_are_the_same():
    before = torch.random.get_rng_state()
    validate(tiny())
    assert torch.equal(before, torch.random.get_rng_state())


def test_whole_steps_of_a_joint_embedding_of_one_crop_have_a_meaning():
    """Their source is the unchanged crop."""
    validate(tiny(objective=config.Objective(kind="joint"), masks=config.Masks(sampler="none", whole=0.25)))


def test_what_changes_nothing_beside_an_encoder_that_stands_still_is_said():
    """A control, as the frozen twin of a run, has its settings and is no error."""
    still = replace(recipe_book.get("ijepa-world-cifar10"), encoder=replace(tiny().encoder, train="none", depth=4))
    validate(still)
    (sentence,) = without_effect(still)
    assert "nothing is changed by objective.variance, objective.covariance, objective.whole_gradient" in sentence
    assert not without_effect(tiny(encoder=still.encoder))


def chosen(recipe: str, settings: dict[str, object]) -> Config:
    """A recipe, or the defaults, with settings on top."""
    start = Config() if recipe == "custom" else recipe_book.get(recipe)
    return fields.with_changes(Config, settings, "pretrain", start)


@pytest.mark.parametrize("name", recipe_book.RECIPES)
def test_no_recipe_brings_a_setting_that_changes_nothing(name):
    assert without_effect(recipe_book.get(name)) == []


@pytest.mark.parametrize("name", ["cifar10", "eurosat-inv", "mae-demo", "ijepa-published-cifar10", "ijepa-cifar10"])
def test_nor_does_a_cell_of_a_sweep(name):
    """Whose levels and conditionings are the sweep's own."""
    moco = recipe_book.get("moco-cifar10")
    cells = cells_of(recipe_book.get(name), Axes(design="full", predictors="1x64,3x32"), [moco])
    assert len(cells) > 12
    assert [sentence for cell in cells for sentence in without_effect(cell.settings)] == []


JOINT = {"objective.kind": "joint", "masks.sampler": "none", "masks.queries": 1.0, "masks.whole": 0.0}
JOINT |= {"objective.variance": 0.0, "objective.covariance": 0.0, "objective.target_layers": 1}


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        (
            "cifar10",
            {"masks.block_area": (0.3, 0.4), "masks.blocks": 1, "masks.ratio": 0.5},
            "masks.sampler is random, so nothing is changed by masks.blocks, masks.block_area.",
        ),
        ("eurosat", {"masks.ratio": 0.5}, "masks.sampler is exact, so nothing is changed by masks.ratio."),
        (
            "eurosat",
            {"masks.context_area": (0.85, 1.0)},
            "masks.sampler is exact, so nothing is changed by masks.context_area.",
        ),
        (
            "ijepa-published-demo",
            {"masks.ratio": 0.5, "masks.blocks": 2},
            "masks.sampler is ijepa, so nothing is changed by masks.ratio.",
        ),
        ("moco-demo", {"masks.blocks": 2}, "masks.sampler is none, so nothing is changed by masks.blocks."),
        (
            "cifar10",
            {"actions.level": "strong", "actions.brightness": 0.1, "actions.grayscale": 0.5},
            "actions.level is strong, so nothing is changed by actions.brightness.",
        ),
        (
            "eurosat-inv",
            {"actions.grayscale": 0.9, "actions.hue": 0.2},
            "actions.level is jitter, so nothing is changed by actions.grayscale.",
        ),
        ("demo", {"views.blur": (0.5, 0.5)}, "views.geometry is shared, so nothing is changed by views.blur."),
        (
            "moco-demo",
            {"actions.blur": 0.5, "views.blur": (0.5, 0.5)},
            "views.geometry is independent, so nothing is changed by actions.blur.",
        ),
        (
            "moco-demo",
            {"actions.level": "jitter", "views.solarize": (0.5, 0.5)},
            "Views of actions.level jitter are not destroyed, so nothing is changed by views.solarize.",
        ),
        ("demo", {"optim.decay": 0.4}, "optim.schedule is cosine, so nothing is changed by optim.decay."),
        ("demo", {"data.start_share": 0.3}, "data.start_size is 0, so nothing is changed by data.start_share."),
        (
            "moco-demo",
            {"objective.error": "smooth_l1", "masks.predict": "visible", "predictor.conditioning": "none"},
            "objective.kind is joint, so nothing is changed by objective.error, masks.predict, predictor.conditioning.",
        ),
        (
            "eurosat",
            {**JOINT, "objective.target_norm": "token"},
            "objective.kind is joint, so nothing is changed by objective.target_norm.",
        ),
        ("custom", {"masks.ratio": 0.5}, "masks.sampler is exact, so nothing is changed by masks.ratio."),
    ],
)
def test_a_chosen_setting_that_changes_nothing_is_said(recipe, settings, sentence):
    validate(chosen(recipe, settings))
    assert without_effect(chosen(recipe, settings)) == [sentence]


def test_what_a_set_of_ones_own_does_not_read_is_said(monkeypatch):
    soft = Transformation(
        name="soft", apply=lambda x, _: x, graded=True, both=True, low=0.0, high=1.0, neutral=0.0, probability=0.8
    )
    monkeypatch.setattr(action_sets, "USERS", {"mine.py:SET": (soft,)})
    changed = {"actions.jitter_probability": 0.1, "actions.jitter_order": "random", "actions.level": "jitter"}
    said = without_effect(chosen("demo", {"actions.set": "mine.py:SET", **changed}))
    assert [sentence.rpartition(" ")[2] for sentence in said] == [f"{name}." for name in changed]
    camera = {"actions.set": "camera", "actions.level": "jitter", "actions.jitter_probability": 0.1}
    assert without_effect(chosen("demo", camera)) == []


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("eurosat", {"masks.sampler": "random", "masks.ratio": 0.5}),
        ("cifar10", {"masks.sampler": "ijepa", "masks.context_area": (0.85, 1.0), "masks.blocks": 2}),
        ("cifar10", {"actions.level": "strong", "actions.grayscale": 0.5}),
        ("demo", {"optim.schedule": "constant", "optim.decay": 0.4}),
        ("demo", {"data.start_size": 32, "data.start_share": 0.3}),
        ("eurosat", JOINT),
    ],
)
def test_one_that_changes_something_is_not(recipe, settings):
    validate(chosen(recipe, settings))
    assert without_effect(chosen(recipe, settings)) == []
