"""Sets of images: mixes, choices, archives in other processes."""

import pickle

import numpy as np
from picture_files import write, zipped

from iwm.data.image_sets import Files, Subset, require_labels
from iwm.data.sources import open_images


def test_mix(tmp_path):
    write(tmp_path / "one" / "a" / "1.png")
    write(tmp_path / "one" / "b" / "2.png", (1, 2, 3))
    for index in range(2):
        write(tmp_path / "two" / "ab"[index] / "3.png")
    write(tmp_path / "flat,with comma" / "4.png")
    one, two, flat = (str(tmp_path / name) for name in ("one", "two", "flat,with comma"))
    mixed = open_images(f"{one}, {two}", "all")
    assert mixed.name == "one+two"
    assert require_labels(mixed)[1].tolist() == [0, 1, 0, 1]
    assert mixed.load(1)[:, 0, 0].tolist() == [1, 2, 3]
    assert mixed.path(2).endswith("two/a/3.png")
    assert open_images(flat, "all").name == "flat-with-comma"
    assert open_images(f"{one},sample", "all").labels is None
    both = open_images("sample,sample-objects")
    assert len(both) == 10_800
    assert both.labels is None


def test_a_subset_keeps_the_given_order(tmp_path):
    for index in range(4):
        write(tmp_path / "ab"[index % 2] / f"{index}.png", (index, 0, 0))
    whole = open_images(str(tmp_path), "all")
    part = Subset(whole, np.array([3, 0, 2]), "val")
    assert (len(part), part.split, part.name, part.classes) == (3, "val", whole.name, ("a", "b"))
    assert require_labels(part)[1].tolist() == [1, 0, 1]
    for place, index in enumerate((3, 0, 2)):
        assert part.path(place) == whole.path(index)
        assert part.load(place).equal(whole.load(index))
        assert part.dimensions(place) == (8, 8)


def test_an_archive_is_opened_anew_in_another_process(tmp_path):
    write(tmp_path / "set" / "1.png", (1, 2, 3))
    images = Files(zipped(tmp_path / "set", tmp_path / "set.zip"), ["1.png"], "set", "all")
    assert images.load(0)[:, 0, 0].tolist() == [1, 2, 3]
    copy = pickle.loads(pickle.dumps(images))
    assert copy._archive is None
    assert copy.load(0).equal(images.load(0))
