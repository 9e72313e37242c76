"""`iwm embed` goes on where it was stopped, and with nothing else."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import pictures_file
from picture_files import noise

from evaluation.planted import exported
from iwm import cli
from iwm.data.sources import open_images
from iwm.evaluation.tasks import embed
from iwm.evaluation.tasks.embedding_file import EmbeddingFile
from iwm.evaluation.tasks.embedding_parts import Parts, done_with, folder_of, mark_of
from iwm.runtime.errors import UserError

IMAGES = 11
ROWS, VECTORS = np.arange(3), np.ones((3, 32), dtype=np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return noise(tmp_path / "images" / "a", IMAGES, broken=(5, 10)).parent


@pytest.fixture
def words(tmp_path: Path, source: Path) -> list[str]:
    (tmp_path / "run").mkdir()
    return ["embed", exported(tmp_path / "run"), str(source), "--speed.precision", "fp32", "--speed.device", "cpu"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every piece that is encoded, three at a time."""
    counts: list[int] = []
    real = embed.Reader.__call__
    monkeypatch.setattr(embed, "AT_ONCE", 3 * 3 * 16 * 16)
    monkeypatch.setattr(embed.Reader, "__call__", lambda self, p: counts.append(len(p)) or real(self, p))
    return counts


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_what_was_stopped_goes_on_and_is_the_same(words, tmp_path, encoded, monkeypatch, capsys, name, pieces):
    """Whether what is left begins with a broken image, or holds nothing else."""
    real = Parts.add

    def add(self, rows, vectors):
        real(self, rows, vectors)
        if self.count == pieces:
            raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(Parts, "add", add)
        assert cli.main([*words, "--out", str(tmp_path / name)]) == 130
    assert "of 11 images; give the same command again, and it goes on there." in capsys.readouterr().err
    assert not (tmp_path / name).exists()
    before = sum(encoded)
    assert cli.main([*words, "--out", str(tmp_path / name)]) == 0
    assert "Going on after" in capsys.readouterr().out
    shapes = 2  # images of nothing, one a command, by which the shape is known
    assert sum(encoded) - shapes == IMAGES - 2, f"what was done is not encoded again, {before} before"
    resumed = EmbeddingFile.open(tmp_path / name)
    assert not folder_of(tmp_path / name).exists()
    assert cli.main([*words, "--out", str(tmp_path / f"whole-{name}")]) == 0
    whole = EmbeddingFile.open(tmp_path / f"whole-{name}")
    assert (resumed.paths, resumed.labels, len(resumed)) == (whole.paths, whole.labels, IMAGES - 2)
    assert resumed.facts["left_out"] == 2
    ours, wanted = (np.concatenate(list(one.pieces())) for one in (resumed, whole))
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_speed_is_that_of_the_images_of_this_call(words, tmp_path, encoded, monkeypatch):
    real, shown = Parts.add, []

    def add(self, rows, vectors):
        real(self, rows, vectors)
        raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(Parts, "add", add)
        assert cli.main([*words, "--out", str(tmp_path / "f.npz")]) == 130
    seconds = iter([0.0, 2.0])
    monkeypatch.setattr(embed, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(embed, "show", lambda title, numbers: shown.append(numbers))
    assert cli.main([*words, "--out", str(tmp_path / "f.npz")]) == 0
    assert shown[0]["images/s"] == (IMAGES - 3) / 2


def test_parts_of_other_embeddings_are_not_gone_on_with(words, tmp_path, encoded, capsys):
    Parts(tmp_path / "f.npz", "of another encoder").add(ROWS, VECTORS)
    assert cli.main([*words, "--out", str(tmp_path / "f.npz")]) == 0
    assert "Going on" not in capsys.readouterr().out
    first = next(iter(EmbeddingFile.open(tmp_path / "f.npz").pieces()))[0]
    assert not np.array_equal(first, VECTORS[0])


def test_a_mark_knows_how_it_is_embedded_and_the_very_images(source):
    images = open_images(str(source), "all")
    mark = mark_of({"layer": 1}, images, "photos")
    assert mark == mark_of({"layer": 1}, open_images(str(source), "all"), "photos")
    assert mark != mark_of({"layer": 2}, images, "photos")
    assert mark != mark_of({"layer": 1}, images, "others")
    os.utime(next(source.rglob("*.png")), (1, 1))
    assert mark != mark_of({"layer": 1}, images, "photos")


@pytest.mark.parametrize("ending", ["zip", "npz"])
def test_a_mark_knows_the_very_archive(source, tmp_path, ending):
    """Its entries keep their names when it is written anew with other pictures."""
    archive = tmp_path / f"photos.{ending}"
    if ending == "zip":
        shutil.make_archive(str(archive.with_suffix("")), "zip", source)
    else:
        pictures_file(archive, count=8)
    mark = mark_of({}, open_images(str(archive), "all"), "photos")
    assert mark == mark_of({}, open_images(str(archive), "all"), "photos")
    os.utime(archive, (1, 1))
    assert mark != mark_of({}, open_images(str(archive), "all"), "photos")


def test_a_damaged_part_and_those_behind_it_are_done_again(tmp_path):
    path = tmp_path / "f.npz"
    parts = Parts(path, "mark")
    for number in range(3):
        parts.add(ROWS + 3 * number, VECTORS)
    assert (done_with(Parts(path, "mark").rows), Parts(path, "mark").count) == (9, 3)
    (folder_of(path) / "000001.npz").write_bytes(b"PK")
    again = Parts(path, "mark")
    assert (done_with(again.rows), again.count) == (3, 1)
    assert len(list(folder_of(path).glob("*.npz"))) == 1
    assert done_with(Parts(path, "another").rows) == 0


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path):
    folder_of(tmp_path / "f.npz").mkdir()
    (folder_of(tmp_path / "f.npz") / "000000.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match="is in the way of the parts of"):
        Parts(tmp_path / "f.npz", "mark")
    assert (folder_of(tmp_path / "f.npz") / "000000.npz").read_bytes() == b"mine"
