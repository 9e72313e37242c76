"""Views of an image: pure functions of seed, number and index, and what they show."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import noise
from tensor_memory import MemoryPeak

from iwm.data.sources import open_images
from iwm.evaluation.tasks import augment
from iwm.runtime import devices
from iwm.runtime.errors import UserError
from iwm.verbs.shared import Classification


@pytest.fixture
def maker(tmp_path) -> augment.Maker:
    images = open_images(str(noise(tmp_path, 12, broken=(3,))), "all")
    return augment.Maker(images, 12, Classification())


def test_views_are_the_image_and_its_crops(maker):
    drawn, again = augment.draw(maker, 3), augment.draw(maker, 3)
    assert drawn.values.shape == (3, 11, 3, 12, 12)
    assert drawn.kept.tolist() == [0, 1, 2, *range(4, 12)]
    assert torch.equal(drawn.values, again.values)
    assert drawn.fresh is None
    plain = augment.draw(maker, 1).values
    assert torch.equal(drawn.values[:1], plain)
    assert torch.equal(drawn.values[2, 3], maker.view(maker.decoded(4), 4, 2))
    assert not torch.equal(drawn.values[1], drawn.values[2])


def test_all_views_of_an_image_are_cut_from_one_decoding(maker, monkeypatch):
    load, loaded = maker.images.load, []

    def counting(index, least=0):
        loaded.append(index)
        return load(index, least)

    monkeypatch.setattr(maker.images, "load", counting)
    augment.draw(maker, 5)
    assert max(loaded.count(index) for index in range(12)) == 2, "as itself, and for its crops"


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_take_no_more_memory_than_is_asked_for(tmp_path, views):
    images = open_images(str(noise(tmp_path, 40)), "all")
    with MemoryPeak() as peak:
        drawn = augment.draw(augment.Maker(images, 32, Classification()), views)
    assert drawn.values.shape == (views, 40, 3, 32, 32)
    assert peak.bytes < (views + 1.4) * 40 * 3 * 32**2, "little more than `require_memory` counts, for the crop at work"


def test_no_kept_views_means_new_ones_every_epoch(maker):
    drawn = augment.draw(maker, 0)
    assert drawn.values.shape == (1, 11, 3, 12, 12)
    assert drawn.fresh is not None
    rows = np.array([3, 0])
    first = drawn.fresh(rows, 0)
    assert torch.equal(first, torch.stack([maker.view(maker.decoded(row), row, 1) for row in (4, 0)]))
    assert torch.equal(first, drawn.fresh(rows, 0))
    assert not torch.equal(first, drawn.fresh(rows, 1))


def _keys() -> np.ndarray:
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[1]


def test_timms_augmentation_changes_crops_and_leaves_the_generators_alone(maker):
    strong = replace(maker, settings=Classification(augment="timm"))
    states = _keys().copy(), torch.get_rng_state()
    views = torch.stack([strong.view(strong.decoded(0), 0, number) for number in range(1, 9)])
    assert np.array_equal(_keys(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.equal(views[4], strong.view(strong.decoded(0), 0, 5))
    crops = torch.stack([maker.view(maker.decoded(0), 0, number) for number in range(1, 9)])
    changed = (views != crops).flatten(1).any(1)
    assert changed.sum() >= 5
    other = replace(maker, settings=Classification(augment="timm", seed=1))
    assert not torch.equal(views, torch.stack([other.view(other.decoded(0), 0, number) for number in range(1, 9)]))


def test_memory_is_asked_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: 3 * 32**2 * (5 * 100 + 2 * 50))
    augment.require_memory(100, 50, 4, 32)
    with pytest.raises(UserError, match=r"100 training images in 5 views and 50 .* lower --views"):
        augment.require_memory(100, 50, 5, 32)
