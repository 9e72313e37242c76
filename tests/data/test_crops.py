"""Squaring and crops, against torchvision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from iwm import config
from iwm.data.crops import IGNORED, center, crop_boxes, crop_size, random_crop, random_crops, scaled_crop


def test_center():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert torch.equal(center(image, 20), image[:, :, 5:25])
    square = image[:, :, :20]
    assert torch.equal(center(square, 20), square)
    expected = TF.center_crop(TF.resize(image, [10], InterpolationMode.BICUBIC, antialias=True), [10, 10])
    assert torch.equal(center(image, 10), expected)
    assert center(image, 64).shape == (3, 64, 64)
    assert center(torch.zeros(3, 2, 500, dtype=torch.uint8), 16).shape == (3, 16, 16)


def test_random_crop_is_torchvisions_resized_crop():
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    for index in range(20):
        height, width = np.array([30]), np.array([40])
        box, flip = crop_boxes(height, width, (0.3, 1.0), 0.5, 1, 2, np.array([index]))
        top, left, rows, columns = box[0].tolist()
        expected = TF.resized_crop(image, top, left, rows, columns, [16, 16], InterpolationMode.BICUBIC, antialias=True)
        expected = expected.flip(2) if flip[0] else expected
        assert torch.equal(random_crop(image, 16, (0.3, 1.0), 0.5, 1, 2, index), expected)


def test_crop_boxes_are_distributed_as_asked():
    count = 20_000
    sides = np.full(count, 200)
    boxes, flips = crop_boxes(sides, sides, (0.3, 1.0), 0.25, 0, 0, np.arange(count))
    areas, aspects = boxes[:, 2] * boxes[:, 3] / 200**2, boxes[:, 3] / boxes[:, 2]
    assert 0.29 < areas.min() < 0.31
    assert areas.max() > 0.97
    assert 0.74 < aspects.min() < 0.76
    assert 1.32 < aspects.max() < 1.35
    assert abs(np.log(aspects).mean()) < 0.01
    # Areas near 1 fit only when nearly square, so torchvision's rule gives less than the mean 0.65 of the range.
    assert 0.55 < areas.mean() < 0.65
    assert abs(flips.mean() - 0.25) < 0.01
    assert (boxes[:, 0] + boxes[:, 2]).max() == (boxes[:, 1] + boxes[:, 3]).max() == 200
    assert boxes[:, :2].min() == 0


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_crop_boxes_lie_inside(height, width, index):
    boxes, _ = crop_boxes(np.array([height]), np.array([width]), (0.05, 1.0), 0.5, 0, 0, np.array([index]))
    top, left, rows, columns = boxes[0]
    assert top >= 0
    assert left >= 0
    assert rows >= 1
    assert columns >= 1
    assert top + rows <= height
    assert left + columns <= width


def test_crops_at_once_are_the_same_bytes():
    pictures = [torch.randint(0, 256, (3, 20 + 3 * i, 40 - 5 * i), dtype=torch.uint8) for i in range(4)]
    at_once = random_crops(pictures, 12, (0.3, 1.0), 0.5, 1, 2, np.arange(4))
    for index, picture in enumerate(pictures):
        assert torch.equal(at_once[index], random_crop(picture, 12, (0.3, 1.0), 0.5, 1, 2, index))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.4, 0.6), (0.7, 2.5)])
def test_scaled_crops_keep_image_and_classes_together(scales):
    """The image's red channel is its mask times 100, so whatever the geometry, red tells the class."""
    mask = torch.zeros(30, 44, dtype=torch.int16)
    mask[4:20, 6:30] = 1
    mask[14:, 22:] = 2
    image = torch.zeros(3, 30, 44, dtype=torch.uint8)
    image[0] = (100 * mask).byte()
    sizes, mirrored = set(), 0
    for step in range(40):
        crop = scaled_crop(30, 44, 24, scales, 0.5, 0, step, 3)
        pixels, classes = crop.of_image(image), crop.of_mask(mask)
        assert pixels.shape == (3, 24, 24)
        inside = classes != IGNORED
        assert int(inside.sum()) == crop.scaled[0] * crop.scaled[1]
        ratio = crop.scaled[1] / crop.box[3]
        assert scales[0] * 0.9 < ratio < scales[1] * 1.1
        # Only pixels on an edge may differ: there the bicubic filter mixes.
        edge = (
            torch.nn.functional.max_pool2d(classes[None, None].float(), 5, 1, 2)[0, 0]
            != -torch.nn.functional.max_pool2d(-classes[None, None].float(), 5, 1, 2)[0, 0]
        )
        flat = inside & ~edge
        assert (pixels[0][flat].float() / 100).round().short().equal(classes[flat])
        sizes.add((crop.box, crop.place))
        mirrored += crop.mirrored
    assert len(sizes) > 10
    assert 8 < mirrored < 32


def test_a_crop_at_full_scale_is_a_piece_of_the_image():
    image = torch.randint(0, 256, (3, 30, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = scaled_crop(30, 44, 24, (1.0, 1.0), 0.0, 0, 5, 3)
    top, left, height, width = crop.box
    assert (height, width) == (24, 24)
    assert crop.of_image(image).equal(image[:, top : top + 24, left : left + 24])
    assert crop == scaled_crop(30, 44, 24, (1.0, 1.0), 0.0, 0, 5, 3)
    assert crop != scaled_crop(30, 44, 24, (1.0, 1.0), 0.0, 0, 5, 4)


def test_a_small_image_lies_on_its_mean_colour():
    image = torch.full((3, 10, 12), 77, dtype=torch.uint8)
    crop = scaled_crop(10, 12, 32, (1.0, 1.0), 0.0, 0, 0, 0)
    assert (crop.of_image(image) == 77).all()
    classes = crop.of_mask(torch.ones(10, 12, dtype=torch.int16))
    assert int((classes == 1).sum()) == 120
    assert int((classes == IGNORED).sum()) == 32 * 32 - 120


@pytest.mark.parametrize("shape", [(1, 65_000), (20_000, 2), (3, 27)])
def test_a_long_strip_costs_no_more_than_its_middle(shape):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    image[:, shape[0] // 2 - 1 : shape[0] // 2 + 2, shape[1] // 2 - 1 : shape[1] // 2 + 2] = 200
    square = center(image, 64)
    assert square.shape == (3, 64, 64)
    assert square[:, 32, 32].min() > 150


def test_a_strip_is_cut_where_scaling_the_whole_would_cut_it():
    image = torch.randint(0, 256, (3, 8, 8 * 20), dtype=torch.uint8)
    whole = F.interpolate(image[None], (16, 320), mode="bicubic", antialias=True)[0][:, :, 152:168]
    assert (center(image, 16).int() - whole.int()).abs().max() <= 1


def test_crops_grow_after_their_share_of_the_steps():
    data = config.Data(image_size=32, start_size=16, start_share=0.3)
    assert [crop_size(data, step, 10) for step in range(10)] == [16] * 3 + [32] * 7
    assert crop_size(data, 0, 0) == 32, "no share of a training without end"
    assert {crop_size(replace(data, start_size=0), step, 10) for step in range(10)} == {32}
