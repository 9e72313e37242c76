"""The embedded photos and the generated scenes."""

import csv
import io
import time
import zipfile
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from iwm.data import samples

DATA = resources.files("iwm").joinpath("data", "assets")


def test_photos_are_split_for_good():
    train, val, everything = (samples.photos(split)[0] for split in ("train", "val", "all"))
    assert (len(train), len(val), len(everything)) == (800, 119, 919)
    assert set(train) | set(val) == set(everything)
    assert not set(train) & set(val)
    assert {picture.size for picture in samples.photos("all")[1]} == {(120, 120)}


def test_every_photo_is_credited():
    rows = list(csv.DictReader(io.StringIO(DATA.joinpath("photos-attribution.csv").read_text(encoding="utf-8"))))
    assert len({row["link"] for row in rows}) == 919
    assert all(row["title"] and row["photographer"] and row["licence"] == "CC BY 2.0" for row in rows)


def test_package_data_stays_small():
    names = ("photos.zip", "objects.zip", "photos-attribution.csv", "LICENSES.md")
    assert sum(len(DATA.joinpath(name).read_bytes()) for name in names) < 8e6


def test_twenty_classes_of_at_least_four_drawings():
    kinds = samples.sprites()
    assert len(kinds) == 20
    assert min(map(len, kinds.values())) >= 4
    everything = [drawing.tobytes() for drawings in kinds.values() for drawing in drawings]
    assert len(set(everything)) == len(everything)
    with zipfile.ZipFile(io.BytesIO(DATA.joinpath("objects.zip").read_bytes())) as archive:
        assert sorted({name.split("/")[0] for name in archive.namelist()}) == list(kinds)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_scene(size):
    for index in range(60):
        scene = samples.scene("train", index, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.label == samples.labels("train")[index]
        rows, columns = np.flatnonzero(scene.mask.any(1)), np.flatnonzero(scene.mask.any(0))
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.3 * size - 3 <= longer <= 0.8 * size + 1


def test_the_mask_is_where_the_object_is(monkeypatch):
    black = Image.new("RGB", (120, 120))
    white = Image.new("RGB", (120, 120), "white")
    for index in range(20):
        pair = []
        for colour in (black, white):
            monkeypatch.setattr(samples, "photos", lambda split, colour=colour: (("photo",), (colour,)))
            pair.append(samples.scene("val", index, 64))
        # Where the background shows through, the two differ by all of its brightness.
        covered = np.abs(pair[0].image.astype(int) - pair[1].image).max(-1) < 128
        assert (covered == pair[0].mask).mean() > 0.995


def test_scenes_depend_on_seed_split_and_index_only():
    first = samples.scene("train", 5, 48, seed=1)
    assert np.array_equal(first.image, samples.scene("train", 5, 48, seed=1).image)
    for other in (("train", 25, 48, 1), ("val", 5, 48, 1), ("train", 5, 48, 2)):
        assert not np.array_equal(first.image, samples.scene(*other).image)


def test_scenes_use_the_photos_of_their_split(monkeypatch):
    asked = []
    photos = samples.photos
    monkeypatch.setattr(samples, "photos", lambda split: (asked.append(split), photos(split))[1])
    samples.scene("val", 0, 32)
    assert asked == ["val"]


def test_classes_are_balanced_and_colour_alone_does_not_tell():
    labels = samples.labels("val")
    assert (np.bincount(labels) == 100).all()
    # The nearest class by the object's mean colour (chance 0.05), as if its pixels were known.
    scenes = [samples.scene("train", index, 32) for index in range(1000)]
    colours = np.array([scene.image[scene.mask].mean(0) for scene in scenes])
    of_class = np.array([scene.label for scene in scenes])
    centres = np.array([colours[:600][of_class[:600] == kind].mean(0) for kind in range(20)])
    guess = np.square(colours[600:, None] - centres).sum(-1).argmin(1)
    assert (guess == of_class[600:]).mean() < 0.2


def test_generation_is_quick():
    samples.scene("train", 0, 64)
    start = time.process_time()
    for index in range(100):
        samples.scene("train", index, 64)
    assert (time.process_time() - start) / 100 < 0.01
