"""Heads on every grid, windows against brute force, weights that come back."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny

from evaluation.planted import exported
from iwm import config, run_folder
from iwm.evaluation.tasks import segmentation, segmenter
from iwm.evaluation.tasks.segmenter import Segmenter, UperNet, at_stride, resample, starts
from iwm.runtime.errors import UserError
from iwm.verbs.segment import SegmentSettings

CLASSES = ("a", "b", "c")


@pytest.fixture
def run(tmp_path: Path) -> str:
    return exported(tmp_path)


def built(run: str, train: str = "head", head: Any = "linear", size: int = 16) -> Segmenter:
    settings = SegmentSettings(train=train, head=head, channels=8)
    return segmentation.build(run_folder.load_model(run), settings, CLASSES, size).eval()


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("train", ["head", "predictor"])
@pytest.mark.parametrize("size", [(16, 16), (20, 28), (13, 22), (3, 5)])
def test_every_pixel_of_any_size_has_its_logits(run, train, head, size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    model = built(run, train, head)
    assert model(images).shape == (2, 3, *size)
    assert model.slide(images).shape == (2, 3, *size)


@torch.no_grad()
def test_the_linear_head_is_a_linear_map_of_four_depths(run):
    model = built(run)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    blocks = model.encoder.intermediates(images, [1, 1, 2, 2])  # a third, a half, two thirds, the end of two blocks
    weight, bias = model.head.linear.weight[:, :, 0, 0], model.head.linear.bias  # pyright: ignore
    patches = torch.cat(blocks, dim=-1) @ weight.T + bias  # pyright: ignore[reportOperatorIssue]
    maps = patches.transpose(1, 2).reshape(2, 3, 4, 4)
    expected = torch.nn.functional.interpolate(maps, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images), expected)


@torch.no_grad()
def test_the_predictor_is_asked_under_the_null_action(run):
    model = built(run, "predictor")
    assert model.predictor is not None
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    tokens = model.encoder.tokens(images)
    blocks = model.predictor.intermediates(tokens, torch.zeros(1, model.space.dim), [1, 1, 2, 2])
    torch.testing.assert_close(
        model(images),
        torch.nn.functional.interpolate(
            model.head([b.transpose(1, 2).reshape(1, 32, 4, 4) for b in blocks], (16, 16)), (16, 16), mode="bilinear"
        ),
    )


def test_maps_lie_at_strides_of_the_image_whatever_the_patch():
    assert [at_stride((512, 680), stride) for stride in segmenter.STRIDES] == [(128, 170), (64, 85), (32, 43), (16, 22)]
    seen = []
    head = UperNet(6, 3, 8).eval()
    head.decoder.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    for patches in (4, 9):  # patches of 16 and of about 7 px
        with torch.no_grad():
            logits = head([torch.randn(1, 6, patches, patches) for _ in range(4)], (64, 64))
        assert logits.shape == (1, 3, 16, 16)
        assert [each.shape[-1] for each in seen[2:6]] == [16, 8, 4, 2]
        seen.clear()


def test_resampling_averages_where_it_shrinks():
    board = torch.arange(64).float().view(1, 1, 8, 8)
    assert torch.equal(resample(board, (8, 8)), board)
    assert float(resample(board, (1, 1))) == pytest.approx(31.5, abs=1e-4)
    checks = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None]
    torch.testing.assert_close(resample(checks, (4, 4))[0, 0, 1:3, 1:3], torch.full((2, 2), 0.5))


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 30), (17, 50), (16, 16), (9, 30)])
def test_windows_are_averaged_where_they_overlap(run, size):
    model = built(run, size=16)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    high, wide = min(16, size[0]), min(16, size[1])
    total, seen = torch.zeros(2, 3, *size), torch.zeros(size)
    for top in starts(size[0], high, 1 / 3):
        for left in starts(size[1], wide, 1 / 3):
            logits = model(images[..., top : top + high, left : left + wide])
            for row in range(high):
                total[:, :, top + row, left : left + wide] += logits[:, :, row]
            seen[top : top + high, left : left + wide] += 1
    assert seen.min() >= 1
    torch.testing.assert_close(model.slide(images), total / seen)


@pytest.mark.parametrize(("side", "window"), [(16, 16), (17, 16), (100, 16), (101, 30), (9, 1)])
def test_windows_cover_a_side_evenly(side, window):
    places = starts(side, window, 1 / 3)
    assert places[0] == 0
    assert places[-1] == side - window
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert all(0 < step <= max(1, window * 2 / 3 + 1) for step in steps)


@torch.no_grad()
@pytest.mark.parametrize(("train", "head"), [("head", "upernet"), ("predictor", "linear")])
def test_weights_come_back_whole(run, train, head, tmp_path):
    model = built(run, train, head)
    segmenter.save_segmenter(model, run_folder.load_model(run), tmp_path / "weights")
    again = segmenter.load_segmenter(tmp_path / "weights")
    images = torch.randint(0, 256, (2, 3, 20, 28), dtype=torch.uint8)
    assert again.names == CLASSES
    assert torch.equal(again.slide(images), model.slide(images))
    assert torch.equal(segmenter.segment(again, images), model.slide(images).argmax(dim=1))


def test_folders_without_a_segmenter(run, tmp_path):
    with pytest.raises(UserError, match="no trained segmenter"):
        segmenter.load_segmenter(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be read"):
        segmenter.load_segmenter(Path(run) / "model")


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["none", "sequence", "feature", "adaln"])
def test_every_conditioning_can_be_segmented_with(conditioning, tmp_path):
    settings = tiny().predictor
    predictor = config.Predictor(depth=settings.depth, width=settings.width, conditioning=conditioning, init="xavier")
    model = built(exported(tmp_path, predictor=predictor), "predictor")
    assert model(torch.zeros(1, 3, 20, 12, dtype=torch.uint8)).shape == (1, 3, 20, 12)
