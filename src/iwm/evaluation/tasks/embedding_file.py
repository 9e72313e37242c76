"""Embeddings in a file, written and read a piece at a time: more images than memory holds.

.parquet   columns path, label (text, empty where there is none) and embedding (a list of float32 of one length);
           a row group a piece; the file's metadata has the facts under "iwm"
.npz       arrays paths, labels, embeddings float32 [n, ...] and facts, a JSON text
"""

import contextlib
import importlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from iwm.runtime import files
from iwm.runtime.errors import UserError

SUFFIXES = (".parquet", ".npz")
AT_ONCE = 8192
"""Rows of an .npz that are read at once."""


@contextlib.contextmanager
def writing(path: Path, facts: Mapping[str, Any]) -> Iterator["_ParquetWriter | _NpzWriter"]:
    """A writer of a file that is there, whole, when the block ends without an exception; it takes the images in their
    order, a piece at a time.

    `facts` are JSON-safe and may change until then. Raises UserError, see `require_format`.
    """
    require_format(path)
    with files.replacing(path) as part:
        kind = _ParquetWriter if path.suffix.lower() == ".parquet" else _NpzWriter
        writer = kind(part)
        try:
            yield writer
            writer.finish(facts)
        finally:
            writer.close()


def require_format(path: Path) -> None:
    """Raises UserError for another suffix, and for .parquet without pyarrow."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} has no suffix that says how to write it; give a name that ends in .parquet or .npz.")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)


def require_names(path: Path, names: Iterable[str]) -> None:
    """Raises UserError for .parquet where one of the names is no UTF-8, which no column of text holds."""
    if path.suffix.lower() != ".parquet":
        return
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="backslashreplace").decode()
            raise UserError(
                f"The name {shown} is no UTF-8, which {path.name} would need; rename it, or take a file that ends in "
                ".npz."
            ) from None


def _pyarrow(path: Path) -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install pyarrow, or take a file that ends in .npz.") from None


class _ParquetWriter:
    """One row group a piece."""

    def __init__(self, path: Path) -> None:
        self.path, self.pyarrow, self.file = path, _pyarrow(path), None

    def write(self, paths: Sequence[str], labels: Sequence[str], embeddings: Float32[np.ndarray, "n *shape"]) -> None:
        pa, flat = self.pyarrow, embeddings.reshape(len(embeddings), -1)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        table = pa.table({"path": pa.array(paths), "label": pa.array(labels), "embedding": lists})
        if self.file is None:
            # Numbers of an embedding hardly repeat, a dictionary of them would only be in the way.
            self.file = pa.parquet.ParquetWriter(self.path, table.schema, use_dictionary=["label"], compression="zstd")
        self.file.write_table(table, row_group_size=len(flat))

    def finish(self, facts: Mapping[str, Any]) -> None:
        assert self.file is not None
        self.file.add_key_value_metadata({"iwm": json.dumps(facts)})

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class _NpzWriter:
    """The numbers wait in a file beside, for an array's length stands at its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths: list[str] = []
        self.labels: list[str] = []
        self.shape: tuple[int, ...] = ()
        self.rows = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - `close` closes it

    def write(self, paths: Sequence[str], labels: Sequence[str], embeddings: Float32[np.ndarray, "n *shape"]) -> None:
        self.paths += paths
        self.labels += labels
        self.shape = embeddings.shape[1:]
        self.rows.write(np.ascontiguousarray(embeddings).data)

    def finish(self, facts: Mapping[str, Any]) -> None:
        arrays = {"paths": self.paths, "labels": self.labels, "facts": json.dumps(facts)}
        with zipfile.ZipFile(self.path, "w") as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values, dtype=np.str_), allow_pickle=False)
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self.paths), *self.shape)}
                np.lib.format.write_array_header_2_0(member, header)
                self.rows.seek(0)
                shutil.copyfileobj(self.rows, member, 2**20)

    def close(self) -> None:
        self.rows.close()


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingFile:
    """A file that `writing` wrote. Raises UserError when it is none."""

    path: Path
    facts: dict[str, Any]
    paths: list[str]
    labels: list[str]

    @classmethod
    def open(cls, path: Path) -> "EmbeddingFile":
        if not path.is_file():
            raise UserError(f"There is no file {path}; write it with `iwm embed RUN S --out {path.name}`.")
        require_format(path)
        try:
            return cls(path, *(_read_parquet(path) if path.suffix.lower() == ".parquet" else _read_npz(path)))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} holds no embeddings of `iwm embed` ({reason.rstrip('.')}); write it again."
            ) from None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's embedding."""
        return tuple(self.facts["shape"])

    def pieces(self) -> Iterator[Float32[np.ndarray, "n ..."]]:
        """The embeddings [n, *shape] in their order, a piece at a time."""
        if self.path.suffix.lower() == ".parquet":
            file = _pyarrow(self.path).parquet.ParquetFile(self.path)
            with file:
                for number in range(file.num_row_groups):
                    column = file.read_row_group(number, columns=["embedding"]).column(0).combine_chunks()
                    yield column.flatten().to_numpy().reshape(-1, *self.shape)
            return
        with zipfile.ZipFile(self.path) as archive, archive.open("embeddings.npy") as member:
            _skip_header(member)
            width = int(np.prod(self.shape))
            for start in range(0, len(self), AT_ONCE):
                count = min(AT_ONCE, len(self) - start)
                yield np.frombuffer(member.read(4 * width * count), dtype="<f4").reshape(count, *self.shape)


def _read_parquet(path: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    with _pyarrow(path).parquet.ParquetFile(path) as file:
        facts = json.loads(file.metadata.metadata[b"iwm"])
        table = file.read(columns=["path", "label"])
    return facts, table.column("path").to_pylist(), table.column("label").to_pylist()


def _read_npz(path: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays["facts"]))
        return facts, arrays["paths"].tolist(), arrays["labels"].tolist()


def _skip_header(member: Any) -> None:
    assert np.lib.format.read_magic(member) == (2, 0)
    np.lib.format.read_array_header_2_0(member)
