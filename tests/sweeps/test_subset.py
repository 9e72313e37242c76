"""A choice of images is a source itself, with all classes in proportion."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures_file
from picture_files import noise

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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return pictures_file(tmp_path / "pictures.npz", count=80, labelled=True)


def chosen_from(source: Path, folder: Path) -> str:
    return subset.write(*open_splits(str(source), size=16)[:2], (20, 6), 16, 0, folder)


def darken(source: Path) -> None:
    """As many pictures under the same names, others than before."""
    arrays = dict(np.load(source))
    later = os.stat(source).st_mtime_ns + 3600 * 10**9
    np.savez(source, **arrays | {"images": arrays["images"] // 2})
    os.utime(source, ns=(later, later))


def test_changed_images_are_chosen_anew(source, tmp_path, capsys):
    before = chosen_from(source, tmp_path)
    darken(source)
    after = chosen_from(source, tmp_path)
    assert after != before
    assert np.array_equal(np.load(after)["images"], np.load(before)["images"] // 2)
    assert "The images of pictures have changed since" in capsys.readouterr().err
    assert chosen_from(source, tmp_path) == after
    assert not capsys.readouterr().err


def test_images_that_were_copied_or_touched_are_the_same(tmp_path, capsys):
    source = noise(tmp_path / "noise", 80)
    before = chosen_from(source, tmp_path)
    written = os.stat(before).st_mtime_ns
    for path in source.iterdir():
        os.utime(path, (1, 1))
    assert chosen_from(source, tmp_path) == before
    assert os.stat(before).st_mtime_ns == written
    assert not capsys.readouterr().err


def test_a_choice_that_notes_no_files_is_taken_again(source, tmp_path):
    """As sweeps wrote it before; it is read anew only where a file is newer."""
    before = Path(chosen_from(source, tmp_path))
    before.with_suffix(".files").unlink()
    arrays: dict[str, np.ndarray] = {**np.load(before), "images": np.zeros((20, 16, 16, 3), dtype=np.uint8)}
    np.savez(before, allow_pickle=False, **arrays)
    assert chosen_from(source, tmp_path) == str(before)
    assert before.with_suffix(".files").exists()
    before.with_suffix(".files").unlink()
    darken(source)
    assert chosen_from(source, tmp_path) != str(before)
