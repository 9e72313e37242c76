"""The camera's operations against Pillow, torchvision and formulas, and the set in an action space."""

import io
import json

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from iwm import config
from iwm.actions import camera
from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import bank_ranges, reference_actions, reference_space
from iwm.runtime.errors import UserError

SPACE = ActionSpace.from_config(config.Actions(set="camera"), 32)


def photo(height: int = 40, width: int = 52) -> torch.Tensor:
    """A smooth picture with edges, on 256 levels, [3, h, w] in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([x, y, 0.5 + 0.5 * torch.sin(9 * x + 5 * y)])
    image[:, 10:22, 12:30] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return (image * 255).round() / 255


@pytest.mark.parametrize("quality", [5, 10, 25, 49, 50, 75, 90, 100])
@pytest.mark.parametrize("size", [(40, 48), (37, 45)])
def test_jpeg_against_pillow(quality, size):
    image = photo(*size)
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
    ours = camera.jpeg(image[None], torch.tensor([float(quality)]))[0] * 255
    apart = (ours - theirs).abs().mean(dim=0)
    # libjpeg counts in integers: here and there a coefficient is rounded to the other side, which shows in its block.
    blocks = torch.nn.functional.avg_pool2d(apart[None, None], 8, ceil_mode=True)
    assert (blocks < 1).float().mean() > 0.75
    assert apart.mean() < 1
    lost, theirs_lost = (float((made - image * 255).square().mean().sqrt()) for made in (ours, theirs))
    assert lost == pytest.approx(theirs_lost, rel=0.1)


def test_jpeg_gets_worse_with_quality_and_each_image_has_its_own():
    images = photo().expand(4, -1, -1, -1)
    made = camera.jpeg(images, torch.tensor([95.0, 60.0, 30.0, 5.0]))
    error = (made - images).square().mean(dim=(1, 2, 3))
    assert (error[1:] > error[:-1]).all()
    torch.testing.assert_close(camera.jpeg(images[:1], torch.tensor([30.0]))[0], made[2])


def test_gamma_against_torchvision():
    images = torch.rand(5, 3, 6, 7)
    values = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0])
    expected = torch.stack([tv.adjust_gamma(i, 2 ** float(v)) for i, v in zip(images, values, strict=True)])
    torch.testing.assert_close(camera.gamma(images, values), expected)


def test_white_balance_against_its_formula():
    images = torch.rand(3, 3, 6, 7) * 0.5
    values = torch.tensor([-0.6, 0.0, 0.6])
    made = camera.white_balance(images, values).double()
    ratio = (made[:, 0] / made[:, 2]) / (images[:, 0] / images[:, 2]).double()
    torch.testing.assert_close(ratio, (2.0 ** values.double())[:, None, None].expand_as(ratio), rtol=1e-5, atol=0)
    assert torch.equal(made[:, 1].float(), images[:, 1])
    assert camera.white_balance(torch.ones(1, 3, 2, 2), torch.tensor([0.6])).max() == 1


def test_noise_is_gaussian_white_and_a_pure_function_of_its_strength():
    images = torch.full((3, 3, 64, 64), 0.5)
    values = torch.tensor([0.02, 0.08, 0.08000001])
    made = camera.noise(images, values)
    drawn = (made - images).flatten(1) / values[:, None]
    assert drawn.mean(dim=1).abs().max() < 0.03
    assert (drawn.std(dim=1) - 1).abs().max() < 0.02
    for share in (0.023, 0.159, 0.841, 0.977):  # quantiles of the normal distribution
        expected = torch.special.ndtri(torch.tensor(share))
        assert (drawn.quantile(share, dim=1) - expected).abs().max() < 0.06
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.04, "another strength, another pattern"
    field = drawn.view(3, 3, 64, 64)
    for shifted in (field.roll(1, 3), field.roll(1, 2), field.roll(1, 1)):
        assert abs(float((field * shifted).mean())) < 0.02, "neighbours must be independent"
    assert torch.equal(camera.noise(images[:1], values[1:2]), made[1:2])
    assert camera.noise(torch.ones(1, 3, 8, 8), torch.tensor([0.1])).max() <= 1


def test_neutral_changes_nothing_or_rounds():
    images = photo()[None]
    assert torch.equal(SPACE.apply(images, SPACE.neutral(1)), images)
    for member in SPACE.transformations:
        made = member.apply(images, torch.tensor([member.neutral]))
        assert (made - images).abs().max() < 3.1 / 255, member.name


def test_operations_do_not_write_to_their_input():
    images = torch.rand(2, 3, 9, 11)
    before = images.clone()
    for member in SPACE.transformations:
        member.apply(images, torch.tensor([member.low, member.high]))
        assert torch.equal(images, before), member.name


def test_the_set_joins_sampling_difference_bank_reach_and_words():
    many = np.arange(4000)
    source, target = (SPACE.sample(0, 0, many, view) for view in ("source", "target"))
    assert SPACE.names == ("gamma", "white_balance", "noise", "jpeg")
    assert (source.applied.float().mean(0) - torch.tensor([0.8, 0.8, 0.3, 0.3])).abs().max() < 0.03
    assert not target.applied[:, 2:].any(), "noise and JPEG never reach the target"
    action = SPACE.difference(source, target)
    assert action.abs().max() <= 1
    torch.testing.assert_close(action[:, 2], -source.values[:, 2] / 0.1)
    torch.testing.assert_close(action[:, 3], (100 - source.values[:, 3]) / 90)
    bank = SPACE.sample_bank(0, 0, 64)
    assert bank.applied[:, :2].all()
    assert not bank.applied[:, 2:].any()
    reached = SPACE.reach(SPACE.difference(SPACE.neutral(64), bank))
    torch.testing.assert_close(reached.values, bank.values, atol=1e-6, rtol=0)
    assert not SPACE.reach(SPACE.encode(noise=-0.05)[None]).applied.any(), "an untouched image has no noise to undo"
    assert SPACE.describe(SPACE.encode(gamma=0.3, noise=-0.05, jpeg=60)) == "gamma +0.30, noise -0.05, jpeg +60.00"


def test_settings_that_are_not_the_cameras_are_named():
    mild = ActionSpace.from_config(config.Actions(set="camera", level="jitter", jitter_probability=0.5), 32)
    assert [member.probability for member in mild.transformations] == [0.5, 0.5, 0, 0]
    ActionSpace.from_config(config.Actions(set="camera", clean="target"), 32)  # of any set
    with pytest.raises(UserError, match=r"actions\.hue' belongs to the photometric set"):
        ActionSpace.from_config(config.Actions(set="camera", hue=0.2), 32)
    with pytest.raises(UserError, match=r"actions\.level strong"):
        ActionSpace.from_config(config.Actions(set="camera", level="strong"), 32)
    with pytest.raises(UserError, match="did you mean 'camera'"):
        ActionSpace.from_config(config.Actions(set="camra"), 32)


def test_the_spec_travels_and_the_bank_is_the_cameras():
    space = ActionSpace.from_config(config.Actions(set="camera", level="jitter"), 32)
    again = ActionSpace.from_spec(json.loads(json.dumps(space.spec())))
    assert again.spec() == space.spec()
    assert again.transformations == space.transformations
    assert reference_space(again, 32).set == "camera"
    reference = ActionSpace.from_config(reference_actions("camera"), 32)
    assert reference_space(again, 32).transformations == reference.transformations
    assert bank_ranges(reference) == bank_ranges(SPACE)


def test_autocast_does_not_reach_the_operations():
    images, parameters = photo()[None], SPACE.sample(0, 0, np.arange(1), "source", always=True)
    values = parameters.values.clone()
    values[:, 3] = 40.0
    parameters = type(parameters)(values, torch.ones_like(parameters.applied))
    plain = SPACE.apply(images, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SPACE.apply(images, parameters), plain)
