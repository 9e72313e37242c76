"""Every photometric operation against torchvision's, on images that are hard for it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from iwm import config
from iwm.actions import photometric

THIRDS = torch.tensor([-0.5, -1 / 3, -1 / 6, 0, 1 / 6, 1 / 3, 0.5, 0.1] * 5)
# Ours, torchvision's, and parameters from edge to edge.
OPERATIONS = {
    "brightness": (photometric.brightness, tv.adjust_brightness, torch.linspace(0, 2.5, 40)),
    "contrast": (photometric.contrast, tv.adjust_contrast, torch.linspace(0, 2.5, 40)),
    "saturation": (photometric.saturation, tv.adjust_saturation, torch.linspace(0, 2.5, 40)),
    "hue": (photometric.hue, tv.adjust_hue, torch.linspace(-0.5, 0.5, 40)),
    "hue of thirds": (
        photometric.hue,
        tv.adjust_hue,
        torch.tensor([-0.5, -1 / 3, -1 / 6, 0, 1 / 6, 1 / 3, 0.5, 0.1] * 5),
    ),
    "grayscale": (photometric.grayscale, lambda image, _: tv.rgb_to_grayscale(image, 3), torch.ones(40)),
    "solarize": (photometric.solarize, tv.solarize, torch.full((40,), 0.5)),
    "solarize anywhere": (photometric.solarize, tv.solarize, torch.linspace(0, 1, 40)),
}
for _radius in (1, 3, 6):
    OPERATIONS[f"blur {_radius}"] = (
        partial(photometric.gaussian_blur, radius=_radius),
        lambda image, sigma, side=2 * _radius + 1: tv.gaussian_blur(image, [side, side], [sigma, sigma]),
        torch.linspace(0.1, 2.0, 40),
    )


def pictures(count: int = 40, height: int = 21, width: int = 30) -> torch.Tensor:
    """Random images on 256 levels, the first ones hard cases: black, white, grey, pure colours, two equal channels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (max(count, 8), 3, height, width), generator=generator) / 255
    images[0], images[1] = 0, 1
    images[2] = images[2, :1]
    images[3] = (images[3] > 0.5).float()
    images[4, 1] = images[4, 0]
    images[5, 2] = images[5, 1]
    images[6, 2] = images[6, 0]
    images[7] = images[7] / 255
    return images[:count]


@pytest.mark.parametrize("name", OPERATIONS)
def test_parity_with_torchvision_on_floats(name):
    ours, theirs, values = OPERATIONS[name]
    images = pictures()
    before = images.clone()
    expected = torch.stack([theirs(image, float(value)) for image, value in zip(images, values, strict=True)])
    assert (ours(images, values) - expected).abs().max() <= 1e-4
    assert torch.equal(images, before), "an operation must not write to its input"


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "solarize anywhere"])
def test_parity_with_torchvision_on_bytes(name):
    ours, theirs, values = OPERATIONS[name]
    images = pictures()
    parameters = [128.0] * len(values) if name == "solarize" else values.tolist()
    bytes_ = (images * 255).round().to(torch.uint8)
    expected = torch.stack([theirs(image, value) for image, value in zip(bytes_, parameters, strict=True)])
    assert ((ours(images, values) * 255).round() - expected).abs().max() <= 2


def test_neutral_parameters_change_nothing():
    images = pictures()
    for name, neutral in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0)):
        changed = OPERATIONS[name][0](images, torch.full((40,), neutral))
        torch.testing.assert_close(changed, images, atol=1e-6, rtol=0)


def test_blur_of_an_image_smaller_than_its_kernel():
    images = pictures(2, 3, 5)
    expected = torch.stack([tv.gaussian_blur(image, [5, 5], [1.0, 1.0]) for image in images])
    torch.testing.assert_close(photometric.gaussian_blur(images, torch.ones(2), radius=6), expected, atol=1e-6, rtol=0)


OTHERS = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.05, "grayscale": 0.9}
OTHERS |= {"blur": 0.9, "solarize": 0.9}


@pytest.mark.parametrize("level", photometric.REPLACED)
def test_a_level_replaces_what_training_warns_of(level):
    cfg = config.Actions(level=level)
    plain = photometric.photometric(cfg, 64)
    changed = {name: photometric.photometric(replace(cfg, **{name: value}), 64) for name, value in OTHERS.items()}
    assert {name for name, members in changed.items() if members == plain} == set(photometric.REPLACED[level])
