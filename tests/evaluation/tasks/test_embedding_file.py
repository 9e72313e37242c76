"""Embeddings come back as they were written, whole files or none, and never all of them in memory."""

import importlib.util
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from iwm.evaluation.tasks.embedding_file import EmbeddingFile, require_names, writing
from iwm.runtime.errors import UserError

PARQUET = pytest.param(
    ".parquet", marks=pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
)
SUFFIXES = (PARQUET, ".npz")


def pieces(shape: tuple[int, ...], counts: tuple[int, ...]):
    generator = np.random.default_rng(0)
    return [generator.standard_normal((count, *shape)).astype(np.float32) for count in counts]


def write(path: Path, parts: list[np.ndarray]) -> None:
    facts = {"shape": list(parts[0].shape[1:]), "left_out": 0}
    with writing(path, facts) as writer:
        for number, part in enumerate(parts):
            rows = range(len(part))
            writer.write([f"{number}/ü{row}.png" for row in rows], [["", "cat"][row % 2] for row in rows], part)
        facts["left_out"] = 3


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_what_is_written_comes_back(tmp_path, suffix, shape):
    path, parts = tmp_path / f"features{suffix}", pieces(shape, (3, 1, 7))
    write(path, parts)
    file = EmbeddingFile.open(path)
    np.testing.assert_array_equal(np.concatenate(list(file.pieces())), np.concatenate(parts))
    assert (len(file), file.shape, file.facts["left_out"]) == (11, shape, 3)
    assert (file.paths[3:5], file.labels[:2]) == (["1/ü0.png", "2/ü0.png"], ["", "cat"])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path, suffix):
    path = tmp_path / f"features{suffix}"
    write(path, pieces((2,), (4,)))
    before = path.read_bytes()

    def stop() -> None:
        with writing(path, {"shape": [2]}) as writer:
            writer.write(["a", "b"], ["", ""], np.eye(2, dtype=np.float32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_others_read_both_formats(tmp_path):
    parts = pieces((5,), (6,))
    write(tmp_path / "f.npz", parts)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], parts[0])
        assert json.loads(str(arrays["facts"]))["shape"] == [5]
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write(tmp_path / "f.parquet", parts)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert json.loads(parquet.read_metadata(tmp_path / "f.parquet").metadata[b"iwm"])["shape"] == [5]
    assert table.column_names == ["path", "label", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[5]"
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), np.float32), parts[0])


def test_a_large_npz_is_never_in_memory_as_a_whole(tmp_path):
    """40 MB of numbers in pieces of half a megabyte."""
    part, count = np.zeros((512, 256), np.float32), 80
    tracemalloc.start()
    with writing(tmp_path / "f.npz", {"shape": [256]}) as writer:
        for _ in range(count):
            writer.write(["a"] * 512, [""] * 512, part)
    total = sum(len(piece) for piece in EmbeddingFile.open(tmp_path / "f.npz").pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 512 * count
    assert peak < 20e6 < count * part.nbytes


def test_without_pyarrow_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install pyarrow, or take a file that ends in .npz"):
        write(tmp_path / "f.parquet", pieces((2,), (1,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("f.npz", None, "There is no file"),
        ("f.npz", b"text", "holds no embeddings"),
        ("f.csv", b"text", "no suffix that says"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        EmbeddingFile.open(tmp_path / name)


def test_an_npz_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "f.npz", images=np.zeros(3))
    with pytest.raises(UserError, match="holds no embeddings of `iwm embed`"):
        EmbeddingFile.open(tmp_path / "f.npz")


def test_a_name_that_parquet_cannot_hold_is_refused():
    names = ["a.png", "b\udce4r.png"]
    require_names(Path("f.npz"), names)
    require_names(Path("f.parquet"), names[:1])
    with pytest.raises(UserError, match=r"b\\udce4r\.png is no UTF-8, which f\.parquet would need; rename it"):
        require_names(Path("f.parquet"), names)
