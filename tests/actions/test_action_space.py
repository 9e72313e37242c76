import dataclasses
import json

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from actions.test_photometric import pictures
from iwm import config
from iwm.actions import action_sets, action_space
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.transformation import Transformation
from iwm.runtime.errors import UserError

SPACE = ActionSpace.from_config(config.Actions(), 32)
MANY = np.arange(20_000)


def test_the_neutral_parameters_of_a_space_change_nothing():
    images = pictures()
    assert torch.equal(SPACE.apply(images, SPACE.neutral(40)), images)


@pytest.mark.parametrize("order", ["fixed", "random"])
@pytest.mark.parametrize("level", ["jitter", "destructive", "strong"])
def test_pipeline_batched_equals_one_by_one_by_torchvision(level, order):
    cfg = config.Actions(level=level, jitter_order=order, grayscale=0.4, blur=0.4, solarize=0.4)
    space = ActionSpace.from_config(cfg, 32)
    images = pictures(40, 32, 32)
    parameters = space.sample(0, 0, np.arange(40), "source")
    batched = space.apply(images, parameters)
    jitter = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for place, image in enumerate(images):
        alone = space.apply(images[place : place + 1], parameters[place : place + 1])[0]
        torch.testing.assert_close(alone, batched[place], atol=2e-6, rtol=0)
        values, applied = parameters.values[place].tolist(), parameters.applied[place]
        for t in parameters.order[place].tolist() if parameters.order is not None else range(4):
            image = jitter[t](image, values[t]) if applied[t] else image
        image = tv.rgb_to_grayscale(image, 3) if applied[4] else image
        image = tv.gaussian_blur(image, [7, 7], [values[5]] * 2) if applied[5] else image
        if applied[6]:
            # Rounding may put a level exactly at the threshold on either side of it.
            clear = (image - 0.5).abs() > 1e-5
            image = torch.where(clear, tv.solarize(image, 0.5), batched[place])
        assert (batched[place] - image).abs().max() <= 1e-4


def test_chunks_do_not_show(monkeypatch):
    images = pictures(40, 32, 32)
    parameters = SPACE.sample(0, 0, np.arange(40), "source")
    whole = SPACE.apply(images, parameters)
    monkeypatch.setattr(action_space, "_PIXELS_AT_ONCE", 3 * 32 * 32)
    torch.testing.assert_close(SPACE.apply(images, parameters), whole, atol=2e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    images = pictures(40, 32, 32)
    parameters = SPACE.sample(0, 0, np.arange(40), "source")
    here, there = SPACE.apply(images, parameters), SPACE.apply(images.cuda(), parameters).cpu()
    assert ((here - there).abs() > 1e-4).float().mean() < 1e-4  # levels at solarize's threshold may fall either way


def test_frequencies_and_ranges():
    source, target = (SPACE.sample(0, 0, MANY, view) for view in ("source", "target"))
    expected = torch.tensor([0.8] * 4 + [0.2] * 3)
    assert (source.applied.float().mean(dim=0) - expected).abs().max() < 0.015
    assert (target.applied.float().mean(dim=0) - torch.tensor([0.8] * 4 + [0.0] * 3)).abs().max() < 0.015
    assert (source.applied[:, :4] == source.applied[:, :1]).all(), "the jitter is applied as a whole"
    for position, transformation in enumerate(SPACE.transformations[:4]):
        drawn = source.values[source.applied[:, position], position]
        assert drawn.min() >= transformation.low
        assert drawn.max() <= transformation.high
        assert abs(drawn.mean() - (transformation.low + transformation.high) / 2) < 0.01
        assert (source.values[~source.applied[:, position], position] == transformation.neutral).all()
    together = torch.corrcoef(torch.cat([source.applied[:, 3:], target.applied[:, :1]], dim=1).T.float())
    assert (together - torch.eye(5)).abs().max() < 0.03, "groups and views must be drawn independently"


def test_sampling_is_a_pure_function():
    drawn = SPACE.sample(3, 5, np.arange(50), "source")
    part = SPACE.sample(3, 5, np.arange(20, 30), "source")
    assert torch.equal(drawn.values[20:30], part.values)
    assert not torch.equal(drawn.values, SPACE.sample(3, 6, np.arange(50), "source").values)
    assert not torch.equal(drawn.values[:, :4], SPACE.sample(3, 5, np.arange(50), "target").values[:, :4])


def test_always():
    cfg = config.Actions(jitter_probability=0.1)
    drawn = ActionSpace.from_config(cfg, 32).sample(0, 0, MANY, "source", always=True)
    assert drawn.applied[:, :4].all()
    assert 0.18 < drawn.applied[:, 5].float().mean() < 0.22


def test_random_order():
    space = ActionSpace.from_config(config.Actions(jitter_order="random"), 32)
    order = space.sample(0, 0, MANY, "source").order
    assert order is not None
    assert len(order.unique(dim=0)) == 24
    assert (order.sort(dim=1).values == torch.arange(4)).all()
    assert SPACE.sample(0, 0, MANY, "source").order is None


def test_bank():
    space = ActionSpace.from_config(config.Actions(jitter_order="random", jitter_probability=0.1), 32)
    bank = space.sample_bank(0, 4, 256)
    assert bank.order is None
    assert bank.applied[:, :4].all()
    assert not bank.applied[:, 4:].any()
    assert len(bank.values[:, :4].unique(dim=0)) == 256
    assert torch.equal(bank.values, space.sample_bank(0, 4, 256).values)
    assert torch.equal(bank.values[:64], space.sample_bank(0, 4, 64).values)
    assert not torch.equal(bank.values, space.sample_bank(0, 5, 256).values)
    assert not torch.equal(bank.values, space.sample_bank(1, 4, 256).values)


def test_difference():
    values = torch.tensor([[1.2, 0.8, 1.0, 0.1, 1.0, 0.0, 2.0]])
    applied = torch.tensor([[True, True, True, True, True, False, False]])
    source, target = Parameters(values, applied), SPACE.neutral(1)
    expected = torch.tensor([[-0.25, 0.25, 0.0, -0.5, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(SPACE.difference(source, target), expected)
    source, target = (SPACE.sample(0, 0, MANY, view) for view in ("source", "target"))
    action = SPACE.difference(source, target)
    assert action[:, :4].abs().max() <= 1
    assert (action[:, 4:] == source.applied[:, 4:]).all()
    assert (SPACE.difference(source, source) == 0).all()
    assert (SPACE.null(3) == 0).all()
    assert SPACE.null(3).shape == (3, 7)


def test_empty_range_gives_zero():
    space = ActionSpace.from_config(config.Actions(brightness=0, contrast=0, saturation=0, hue=0), 32)
    action = space.difference(space.sample(0, 0, MANY, "source"), space.sample(0, 0, MANY, "target"))
    assert (action[:, :4] == 0).all()
    assert (space.encode(brightness=0.3) == 0).all()


def test_levels():
    def jitter(space):
        return [(round(t.low, 6), round(t.high, 6)) for t in space.transformations[:4]]

    assert SPACE.names == ("brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
    assert jitter(SPACE) == [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    mild = ActionSpace.from_config(config.Actions(level="jitter"), 32)
    assert mild.dim == 7
    assert [t.probability for t in mild.transformations[4:]] == [0, 0, 0]
    assert not mild.sample(0, 0, MANY, "source").applied[:, 4:].any()
    strong = ActionSpace.from_config(config.Actions(level="strong"), 32)
    assert jitter(strong) == [(0.2, 1.8)] * 3 + [(-0.2, 0.2)]
    assert jitter(ActionSpace.from_config(config.Actions(brightness=1.5), 32))[0] == (0, 2.5)


@pytest.mark.parametrize(
    ("size", "sigma"), [(16, (0.4, 1.0)), (32, (0.4, 1.0)), (128, (0.25, 1.5)), (224, (0.1, 2.0)), (448, (0.2, 4.0))]
)
def test_blur_scales_with_the_image(size, sigma):
    blur = ActionSpace.from_config(config.Actions(), size).transformations[5]
    assert (blur.low, blur.high) == pytest.approx(sigma)
    explicit = ActionSpace.from_config(config.Actions(blur_sigma=(0.5, 0.7)), size).transformations[5]
    assert (explicit.low, explicit.high) == (0.5, 0.7)


def test_encode_and_describe():
    action = SPACE.encode(brightness=0.3, hue=-0.05, blur=1)
    torch.testing.assert_close(action, torch.tensor([0.375, 0, 0, -0.25, 0, 1, 0]))
    assert SPACE.describe(action) == "brightness +0.30, hue -0.05, undo blur"
    assert SPACE.describe(SPACE.null(1)[0]) == "as it is"
    assert (SPACE.encode() == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"brightnes": 0.3}, "did you mean 'brightness'"),
        ({"blur": 0.5}, "it is a flag"),
        ({"hue": float("nan")}, "finite"),
    ],
)
def test_encode_names_what_is_wrong(changes, message):
    with pytest.raises(UserError, match=message):
        SPACE.encode(**changes)


def test_reach_inverts_the_action_from_an_untouched_image():
    bank = SPACE.sample_bank(0, 0, 64)
    reached = SPACE.reach(SPACE.difference(SPACE.neutral(64), bank))
    torch.testing.assert_close(reached.values, bank.values, atol=1e-6, rtol=0)
    assert torch.equal(reached.applied, bank.applied)
    assert SPACE.reach(SPACE.encode(brightness=-3)[None]).values[0, 0] == 0
    assert not SPACE.reach(SPACE.encode(blur=1)[None]).applied.any()


def test_spec_round_trip():
    space = ActionSpace.from_config(config.Actions(level="strong", jitter_order="random"), 96)
    again = ActionSpace.from_spec(json.loads(json.dumps(space.spec())))
    assert again.spec() == space.spec()
    images = pictures(16, 24, 24)
    parameters = space.sample(0, 0, np.arange(16), "source")
    assert torch.equal(again.sample(0, 0, np.arange(16), "source").values, parameters.values)
    assert torch.equal(again.apply(images, parameters), space.apply(images, parameters))


def test_spec_that_cannot_be_read():
    spec = SPACE.spec()
    spec["transformations"][0]["name"] = "sepia"
    with pytest.raises(UserError, match=r"'sepia'.*register"):
        ActionSpace.from_spec(spec)
    with pytest.raises(UserError, match="damaged"):
        ActionSpace.from_spec({"transformations": []})


def gamma(images: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return images ** value[:, None, None, None]


GAMMA = Transformation(
    name="gamma", apply=gamma, graded=True, both=True, low=0.5, high=2.0, neutral=1.0, probability=1.0,
    sample=lambda uniform: 2 ** (2 * uniform - 1),
)  # fmt: skip
INVERT = Transformation(
    name="invert", apply=lambda images, value: 1 - images, graded=False, both=False,
    low=1.0, high=1.0, neutral=0.0, probability=0.5,
)  # fmt: skip


def test_a_transformation_of_your_own_joins(monkeypatch):
    monkeypatch.setattr(action_sets, "REGISTERED", dict(action_sets.REGISTERED))
    for transformation in (GAMMA, INVERT):
        action_sets.register(transformation)
    space = ActionSpace.from_config(config.Actions(jitter_probability=0, grayscale=0, blur=0, solarize=0), 32)
    assert space.names[7:] == ("gamma", "invert")
    source, target = (space.sample(0, 0, MANY, view) for view in ("source", "target"))
    default = SPACE.sample(0, 0, MANY, "target")
    jittered = ActionSpace.from_config(config.Actions(), 32).sample(0, 0, MANY, "target")
    assert torch.equal(jittered.values[:, :7], default.values), "the others' draws must stay as they were"
    assert source.applied[:, 7].all()
    assert not target.applied[:, 8].any()
    assert abs(source.values[:, 7].log2().mean()) < 0.02, "drawn by its own sampler"
    action = space.difference(source, target)
    torch.testing.assert_close(action[:, 7], (target.values[:, 7] - source.values[:, 7]) / 1.5)
    assert torch.equal(action[:, 8], source.applied[:, 8].float())
    images = pictures()
    parameters = source[:40]
    expected = images ** parameters.values[:, 7, None, None, None]
    expected = torch.where(parameters.applied[:, 8, None, None, None], 1 - expected, expected)
    torch.testing.assert_close(space.apply(images, parameters), expected)
    assert space.describe(space.encode(gamma=0.5, invert=1)) == "gamma +0.50, undo invert"
    assert ActionSpace.from_spec(space.spec()).spec() == space.spec()


def test_ranges_in_numpys_numbers_travel_with_the_weights_too():
    gamma = dataclasses.replace(GAMMA)
    object.__setattr__(gamma, "high", np.float32(2.0))  # past the tests' check of types, which users do not have
    space = dataclasses.replace(SPACE, transformations=(gamma,))
    assert json.loads(json.dumps(space.spec()))["transformations"][0]["high"] == 2.0


def test_spaces_in_which_an_action_means_something_else_are_told_apart():
    """A spec of an older version may hold fewer fields; what it does not say is taken as unchanged."""
    one, two = (dataclasses.replace(SPACE, transformations=(GAMMA, *rest)).spec() for rest in ((INVERT,), ()))
    swapped = dataclasses.replace(SPACE, transformations=(INVERT, GAMMA)).spec()
    said = "with the transformations in the order gamma, invert, now it is invert, gamma"
    assert action_space.first_difference(one, swapped) == said
    assert action_space.first_difference(one, two) == "with the transformation 'invert', which is not there now"
    older = json.loads(json.dumps(one))
    assert action_space.first_difference(older, one) == ""
    del older["transformations"][0]["origin"]
    assert action_space.first_difference(older, one) == ""


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        (dataclasses.replace(GAMMA, name="hue"), "built-in"),
        (dataclasses.replace(GAMMA, name="my gamma"), "cannot name"),
        (dataclasses.replace(GAMMA, low=3), "range of 'gamma'"),
        (dataclasses.replace(GAMMA, probability=2), "probability of 'gamma'"),
    ],
)
def test_a_transformation_that_cannot_join(transformation, message):
    with pytest.raises(UserError, match=message):
        action_sets.register(transformation)


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        (config.Actions(hue=0.6), "actions.hue"),
        (config.Actions(brightness=-0.1), "actions.brightness"),
        (config.Actions(blur_sigma=(0.0, 1.0)), "actions.blur_sigma"),
        (config.Actions(blur=1.2), "probability of 'blur'"),
        (config.Actions(jitter_probability=-1), "probability of 'brightness'"),
    ],
)
def test_bad_settings_are_named(cfg, named):
    with pytest.raises(UserError, match=named):
        ActionSpace.from_config(cfg, 32)


def test_parameters_travel_in_parts():
    drawn = ActionSpace.from_config(config.Actions(jitter_order="random"), 32).sample(0, 0, np.arange(6), "source")
    repeated = drawn.repeat(3)
    assert len(repeated) == 18
    assert torch.equal(repeated[::3].values, drawn.values)
    order = repeated[1::3].order
    assert order is not None
    assert drawn.order is not None
    assert torch.equal(order, drawn.order)
    with pytest.raises(UserError, match="18 sets of parameters were given for 6 images"):
        SPACE.apply(pictures(6), repeated)
