import numpy as np
import pytest
import torch

from iwm import config
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.views import make_independent_views, make_views

INDICES = np.arange(1000, 1096)
DESTRUCTIVE = (4, 5, 6)


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    return torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def views_of(crops, cfg, step=0, indices=INDICES):
    return make_views(crops, ActionSpace.from_config(cfg, 16), cfg, 0, step, indices, "cpu")


def test_images_and_action(crops):
    views = views_of(crops, config.Actions())
    assert views.source.shape == views.target.shape == (96, 3, 16, 16)
    assert views.action.shape == (96, 7)
    for images in (views.source, views.target):
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
    assert views.action.abs().max() <= 1
    assert (views.action[:, DESTRUCTIVE] == views.source_parameters.applied[:, DESTRUCTIVE]).all()


@pytest.mark.parametrize("source_from", ["crop", "target"])
def test_null_action_means_equal_views(crops, source_from):
    views = views_of(crops, config.Actions(jitter_probability=0.4, source_from=source_from))
    null = (views.action == 0).all(dim=1)
    assert 0 < null.sum() < 96
    assert torch.equal(views.source[null], views.target[null])
    changed = (views.source != views.target).flatten(1).any(dim=1)
    assert (changed == ~null).all()


def test_target_is_never_destroyed(crops):
    cfg = config.Actions(grayscale=1, blur=1, solarize=1, jitter_probability=0)
    views = views_of(crops, cfg)
    assert torch.equal(views.target, crops.float() / 255)
    assert (views.action == torch.tensor([0, 0, 0, 0, 1.0, 1, 1])).all()
    assert torch.equal(views.source[:, 0], views.source[:, 2]), "the source must be grey"


def test_source_from_target_undoes_the_extra_jitter(crops):
    cfg = config.Actions(source_from="target")
    space = ActionSpace.from_config(cfg, 16)
    views = views_of(crops, cfg)
    assert torch.equal(views.source, space.apply(views.target, views.source_parameters))
    assert torch.equal(views.action, space.difference(views.source_parameters, space.neutral(96)))
    factor = views.source_parameters.values[:, 0]
    torch.testing.assert_close(views.action[:, 0], (1 - factor) / 0.8)


@pytest.mark.parametrize("source_from", ["crop", "target"])
def test_a_clean_source_is_the_crop_and_the_action_all_of_the_targets_change(crops, source_from):
    cfg = config.Actions(jitter_probability=1.0, source_from=source_from)
    space = ActionSpace.from_config(cfg, 16)
    views = make_views(crops, space, cfg, 0, 5, INDICES, "cpu", clean=True)
    assert torch.equal(views.source, crops / 255)
    assert torch.equal(views.target, views_of(crops, cfg, step=5).target), "the target is the one of every other step"
    assert torch.equal(views.action, space.difference(space.neutral(96), views.target_parameters))
    assert (views.action[:, DESTRUCTIVE] == 0).all()


def test_source_and_target_are_jittered_independently(crops):
    views = views_of(crops, config.Actions())
    both = views.source_parameters.applied[:, 0] & views.target_parameters.applied[:, 0]
    assert both.any()
    assert (views.source_parameters.values[both, :4] != views.target_parameters.values[both, :4]).all()


def test_deterministic_and_independent_of_the_batch(crops):
    cfg = config.Actions()
    views, again, later = views_of(crops, cfg), views_of(crops, cfg), views_of(crops, cfg, step=1)
    assert torch.equal(views.source, again.source)
    assert torch.equal(views.action, again.action)
    assert not torch.equal(views.action, later.action)
    for place in range(0, 96, 7):
        alone = views_of(crops[place : place + 1], cfg, indices=INDICES[place : place + 1])
        assert torch.equal(alone.action[0], views.action[place])
        torch.testing.assert_close(alone.source[0], views.source[place], atol=2e-6, rtol=0)
        torch.testing.assert_close(alone.target[0], views.target[place], atol=2e-6, rtol=0)


def independent(actions: config.Actions, **views) -> config.Config:
    return config.Config(actions=actions, views=config.Views(geometry="independent", **views))


def test_independent_views_have_their_own_crops_and_probabilities(crops):
    cfg = independent(config.Actions(jitter_probability=0.8))
    space = ActionSpace.from_config(cfg.actions, 16)
    others, many = crops.flip(0), np.arange(96)
    found = [make_independent_views(crops, others, space, cfg, 0, step, many, "cpu") for step in range(20)]
    for view, wanted in (("source", (0.2, 1.0, 0.0)), ("target", (0.2, 0.1, 0.2))):
        applied = torch.cat([getattr(views, f"{view}_parameters").applied for views in found]).float().mean(0)
        assert applied[0] == pytest.approx(0.8, abs=0.04)
        assert applied[4:].tolist() == pytest.approx(wanted, abs=0.04)
    assert not found[0].action.any(), "there is no action between independent crops"
    again = make_independent_views(crops[5:9], others[5:9], space, cfg, 0, 3, many[5:9], "cpu")
    torch.testing.assert_close(again.source, found[3].source[5:9])
    torch.testing.assert_close(again.target, found[3].target[5:9])
    plain = independent(config.Actions(jitter_probability=0, grayscale=0), blur=(0, 0), solarize=(0, 0))
    still = ActionSpace.from_config(plain.actions, 16)
    views = make_independent_views(crops, others, still, plain, 0, 0, many, "cpu")
    assert torch.equal(views.source, crops / 255)
    assert torch.equal(views.target, others / 255)


def test_independent_views_of_level_jitter_are_not_destroyed(crops):
    """The default blur of independent views is certain on the source."""
    cfg = independent(config.Actions(level="jitter", jitter_probability=1.0))
    space, indices = ActionSpace.from_config(cfg.actions, 16), np.arange(96)
    views = make_independent_views(crops, crops.flip(0), space, cfg, 0, 3, indices, "cpu")
    for parameters in (views.source_parameters, views.target_parameters):
        assert not parameters.applied[:, DESTRUCTIVE].any()
        assert parameters.applied[:, :4].all()
    still = independent(config.Actions(level="jitter", jitter_probability=0))
    space = ActionSpace.from_config(still.actions, 16)
    views = make_independent_views(crops, crops.flip(0), space, still, 0, 3, indices, "cpu")
    assert torch.equal(views.source, crops / 255)
    assert torch.equal(views.target, crops.flip(0) / 255)


@pytest.mark.parametrize(
    "cfg",
    [config.Actions(), config.Actions(source_from="target"), config.Actions(jitter_order="random")],
    ids=["crop", "target", "random order"],
)
def test_several_sources_share_one_target(crops, cfg):
    """The first is, to the bit, the one that there is alone; every action leads from its source to that target."""
    space = ActionSpace.from_config(cfg, 16)
    alone = make_views(crops, space, cfg, 0, 3, INDICES, "cpu")
    views = make_views(crops, space, cfg, 0, 3, INDICES, "cpu", sources=3)
    assert views.source.shape == (3 * 96, 3, 16, 16)
    for name in ("source", "action"):
        assert torch.equal(getattr(views, name)[:96], getattr(alone, name))
    assert torch.equal(views.target, alone.target)
    for number in range(3):
        rows = slice(96 * number, 96 * (number + 1))
        own = views.source_parameters[rows]
        base = alone.target if cfg.source_from == "target" else crops / 255
        reference = space.neutral(96) if cfg.source_from == "target" else alone.target_parameters
        assert torch.equal(views.source[rows], space.apply(base, own))
        assert torch.equal(views.action[rows], space.difference(own, reference))
        assert number == 0 or not torch.equal(views.action[rows], alone.action), "each has its own change"
    few = make_views(crops[5:9], space, cfg, 0, 3, INDICES[5:9], "cpu", sources=2)
    assert torch.equal(few.action[4:], views.action[96 + 5 : 96 + 9]), "whatever the batch and the number of sources"


@pytest.mark.parametrize("kind", ["none", "target", "either", "both"])
def test_one_of_two_views_is_always_clean(crops, kind):
    """The other one, its action and the whole steps are as ever."""
    cfg = config.Actions(jitter_probability=1.0, grayscale=1.0, clean=kind)
    space, plain = ActionSpace.from_config(cfg, 16), config.Actions(jitter_probability=1.0, grayscale=1.0)
    usual, views = (make_views(crops, space, each, 0, 3, INDICES, "cpu", sources=2) for each in (plain, cfg))
    clean = {"source": (views.source[:96] == crops / 255), "target": (views.target == crops / 255)}
    source, target = (pixels.flatten(1).all(dim=1) for pixels in clean.values())
    wanted = {"none": (0, 0), "target": (0, 96), "both": (96, 96)}
    if kind == "either":
        assert torch.equal(source, ~target)
        assert 30 < source.sum() < 66, "by lot"
    else:
        assert (int(source.sum()), int(target.sum())) == wanted[kind]
    assert torch.equal(views.source[:96][~source], usual.source[:96][~source])
    assert torch.equal(views.target[~target], usual.target[~target])
    assert torch.equal(views.source[96:][source], crops[source] / 255), "of all sources the same images are clean"
    both = Parameters.joined([views.target_parameters] * 2)
    assert torch.equal(views.action, space.difference(views.source_parameters, both))
    whole = [make_views(crops, space, each, 0, 3, INDICES, "cpu", clean=True) for each in (plain, cfg)]
    assert torch.equal(whole[0].target, whole[1].target), "where the source is clean, the target is not"
    assert torch.equal(whole[1].source, crops / 255)
    few = make_views(crops[5:9], space, cfg, 0, 3, INDICES[5:9], "cpu")
    assert torch.equal(few.action, views.action[5:9]), "whatever the batch"
