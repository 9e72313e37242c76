"""A choice of images is a source itself, with all classes in proportion."""

from pathlib import Path

import numpy as np
from conftest import pictures_file

from iwm.data.sources import open_splits
from iwm.sweeps import subset


def test_a_choice_of_images_has_all_classes_in_proportion(tmp_path: Path):
    source = str(pictures_file(tmp_path / "pictures.npz", count=80, labelled=True))
    splits = open_splits(source, size=16)[:2]
    path = subset.write(*splits, (20, 6), 16, 0, tmp_path)
    arrays = np.load(path)
    assert np.bincount(arrays["labels"]).tolist() == [10, 10]
    assert np.bincount(arrays["val_labels"]).tolist() == [3, 3]
    everything = {image.tobytes() for image in np.load(source)["images"]}
    chosen = [image.tobytes() for image in arrays["images"]]
    assert set(chosen) <= everything
    assert len(set(chosen)) == 20
    assert subset.write(*splits, (20, 6), 16, 0, tmp_path) == path
    assert subset.write(*splits, (20, 6), 16, 1, tmp_path) != path
    whole, _, _ = open_splits(subset.write(*splits, (0, 0), 16, 0, tmp_path))
    assert len(whole) == 80
