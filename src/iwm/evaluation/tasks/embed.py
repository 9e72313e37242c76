"""Embeddings of images: one vector an image, of an encoder, or of what a world model predicts.

    z = pool f(x)             space "encoder": any block, any pooling (`features`)
    z = pool target(x)        space "target":  the space that is predicted
    z = pool p(f(x), a)       with an action:  the image as it would look after the change, in target space

They are written a piece at a time (`embedding_parts`), so a set may be larger than memory.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from iwm.actions.action_text import parse_action
from iwm.actions.pixel_search import reach_with_flags
from iwm.data.decode import NothingReadable
from iwm.data.file_states import files_mark
from iwm.data.image_sets import UNLABELLED, ImageSet, Subset
from iwm.data.shares import load_chunks, nothing_readable
from iwm.data.sources import open_images, source_identity
from iwm.evaluation import ritual
from iwm.evaluation.tasks import embedding_file, embedding_parts, features
from iwm.evaluation.tasks.embedding_file import EmbeddingFile
from iwm.evaluation.tasks.embedding_parts import Parts, Piece
from iwm.evaluation.tasks.feature_cache import digest
from iwm.evaluation.tasks.features import BATCH, FrozenEncoder, Pixels, Pooling
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import open_world
from iwm.runtime import distributed, files, sharing
from iwm.runtime.console import console, progress, show, tables_are_printed
from iwm.runtime.devices import Session
from iwm.runtime.errors import Interrupted, UserError
from iwm.verbs.embed import Embed, Reading

AT_ONCE = 2**26
"""Bytes of decoded pictures, and of their embeddings, held at once."""


class TargetEncoder(FrozenEncoder):
    """Images to tokens in target space: as they are, or as the predictor says they look after an action."""

    def __init__(self, model: ImageWorldModel, size: int = 0, action: Float[Tensor, " k"] | None = None) -> None:
        super().__init__()
        self.model, self.action = model, action
        self.name = "target space" if action is None else f"predicted, {model.space.describe(action)}"
        self.architecture = str(model.settings.encoder)
        self.size = size or model.settings.data.image_size
        self.layer = self.depth = model.target_encoder.depth

    @torch.no_grad()
    def outputs(self, images: Pixels) -> list[Float[Tensor, "b n d"]]:
        if self.action is None:
            return [self.model.target(images).values]
        return [self.model.predict(self.model.encode(images), self.action).values]

    def changed(self, images: Pixels) -> Pixels:
        """The images as the action really changes them; what only a source carries is left as it is."""
        if self.action is None:
            return images
        space = self.model.space
        truth = space.apply(images.cpu().float() / 255, reach_with_flags(space, self.action.expand(len(images), -1)))
        return (truth.clamp(0, 1) * 255).round().byte()

    def identity(self) -> str:
        """What the space depends on; the action is no part of it."""
        return f"target {self.architecture} {digest(list(self.model.state_dict().items()))}"


@dataclass(frozen=True)
class Reader:
    """How images become vectors."""

    encoder: FrozenEncoder
    pooling: Pooling
    session: Session

    @classmethod
    def open(cls, o: Reading, session: Session) -> "Reader":
        """As the options say. Raises UserError for a RUN, an action, a block or a pooling that there is not."""
        if o.in_target_space:
            model = open_world(o.run, session)
            encoder: FrozenEncoder = TargetEncoder(model, o.size)
        else:
            encoder = features.open_encoder(o.run, student=o.student, layer=o.layer, layers=o.layers, size=o.size)
        reader = cls(features.prepared(encoder, session), o.pooling, session)
        _ = reader.shape  # complains before any work
        return reader.after(o.action)

    def after(self, action: str) -> "Reader":
        """The same in target space, of images as the predictor says they look after an action ("": as they are).

        Raises UserError for an action that there is not.
        """
        if not action:
            return self
        assert isinstance(self.encoder, TargetEncoder)
        model = self.encoder.model
        changes = parse_action(action, model.space)
        return replace(self, encoder=TargetEncoder(model, self.encoder.size, changes))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one image's embedding: [d], or [patches, d] of all tokens."""
        size = self.encoder.size
        return tuple(self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1:])

    def __call__(self, pixels: Pixels) -> Float[Tensor, "n *shape"]:
        """Embeddings of decoded images, float32 on the host."""
        batches = pixels.split(BATCH)
        parts = [features.encode_batch(self.encoder, each, self.pooling, self.session) for each in batches]
        return torch.cat(parts).float()

    def pieces(self, images: ImageSet, start: int = 0) -> Iterator[Piece]:
        """Rows of the readable images from `start` on and their embeddings, some at a time, under a progress bar. Every
        rank embeds its share of each piece, and all get the pieces in order.

        Raises UserError when no image at all can be decoded.
        """
        size, nothing = self.encoder.size, not start
        bytes_of_image = max(3 * size * size, 4 * int(np.prod(self.shape)))
        with progress("images") as bar:
            task = bar.add_task("embed", total=len(images), completed=start, note="")
            for done, pixels, rows in _chunks(images, size, max(1, AT_ONCE // bytes_of_image), start):
                with distributed.share():
                    parts = {"rows": torch.from_numpy(rows), "vectors": self(pixels)} if len(rows) else {}
                parts = sharing.gathered_each(parts)
                if parts:
                    nothing = False
                    yield parts["rows"].numpy(), parts["vectors"].numpy()
                bar.update(task, completed=done)
        if nothing:
            raise nothing_readable(images)

    def facts(self, o: Reading) -> dict[str, Any]:
        """What a file of embeddings says of itself: enough to embed another image alike."""
        return {
            "run": o.run,
            "encoder": self.encoder.name,
            "identity": self.encoder.identity(),
            "space": "target" if o.in_target_space else "encoder",
            **{name: getattr(o, name) for name in ("action", "pooling", "student", "layer", "layers", "size")},
            "image_size": self.encoder.size,
            "shape": list(self.shape),
            "precision": self.session.precision,
        }


def _chunks(images: ImageSet, size: int, at_once: int, start: int) -> Iterator[tuple[int, Pixels, np.ndarray]]:
    """How many images are done after these, this rank's share of the next ones, and their rows; it may have none."""
    if start >= len(images):
        return
    if distributed.size() == 1:
        try:
            for pixels, rows in load_chunks(Subset(images, np.arange(start, len(images))), size, at_once):
                yield start + int(rows[-1]) + 1, pixels, start + rows
        except NothingReadable:
            if not start:  # of all images; a rest may well be broken
                raise
        return
    for first in range(start, len(images), at_once * distributed.size()):
        piece = np.arange(first, min(first + at_once * distributed.size(), len(images)))
        with distributed.share():
            chunks = [*load_chunks(Subset(images, piece), size, at_once)]  # one, or none where nothing can be decoded
        pixels, kept = chunks[0] if chunks else (torch.empty(0, 3, size, size, dtype=torch.uint8), np.empty(0, int))
        yield int(piece[-1]) + 1, pixels, piece[kept]


MADE_BY = (
    *("identity", "space", "action", "pooling", "student", "layer", "layers", "size", "image_size", "shape"),
    "images_mark",
)
"""Facts that decide the numbers."""


@dataclass(frozen=True, repr=False)
class Embedding:
    """Embeddings of images in their order, `iwm.embed`'s answer: in memory, or in a file that is read when asked for.

    `np.asarray(embedding)` is `embedding.embeddings`.
    """

    paths: list[str]
    labels: list[str]
    """The class of each image, empty where it has none."""
    facts: dict[str, Any]
    path: Path | None = None
    """The file, where one was written."""
    _held: Float32[np.ndarray, "n *shape"] | None = None

    @cached_property
    def embeddings(self) -> Float32[np.ndarray, "n *shape"]:
        """Float32 [n, d]; [n, patches, d] with pooling "tokens". Raises UserError where the file holds others now."""
        if self._held is not None:
            return self._held
        assert self.path is not None
        file = EmbeddingFile.open(self.path)
        if file.paths != self.paths or any(file.facts.get(name) != self.facts.get(name) for name in MADE_BY):
            raise UserError(f"{self.path} was written again since, with other embeddings; embed again.")
        return np.concatenate(list(file.pieces()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.embeddings, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.paths)

    def document(self) -> dict[str, Any]:
        """What `--json` prints: how the images were embedded and where the file is, without a file all of it."""
        content = {"images": len(self), **self.facts, "path": self.path}
        if self.path is None:
            content |= {"paths": self.paths, "labels": self.labels, "embeddings": self.embeddings}
        return content

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.facts["shape"]))
        return f"Embedding({len(self):,} images, {shape} numbers each, path={str(self.path) if self.path else None!r})"


def embed(o: Embed) -> Embedding:
    """Embed every readable image of a source, its training and validation images one after the other. Several ranks
    share them; the first one writes.

    Writes the file, whole or not at all, and goes on where an earlier call of the same was stopped; from Python,
    without `out`, the arrays are only returned. Raises UserError for a RUN, a source or an option that cannot be read,
    and for a file that cannot be written; Interrupted after Ctrl-C.
    """
    path = Path(o.out).expanduser() if o.out else None
    if path is None and (tables_are_printed() or console.hushed):  # --json prints all, Python callers get arrays
        raise UserError("Where shall the embeddings go? Give --out FILE.parquet, or FILE.npz.")
    if path is not None:
        embedding_file.require_format(path)
        place = path
        sharing.by_first(lambda: require_place(place))
    with Session.open(o.speed) as session:
        reader = Reader.open(o, session)
        images = open_images(o.data, "all", size=reader.encoder.size)
        if path is not None:
            embedding_file.require_names(path, (images.path(row) for row in range(len(images))))
        start = time.perf_counter()
        embedding, earlier = _written(reader, images, o, path) if path else (_kept(reader, images, o), 0)
        seconds = time.perf_counter() - start
        left_out = len(images) - len(embedding)
        if tables_are_printed():
            numbers = {"encoder": reader.encoder.name, "pooling": o.pooling, "images": len(embedding)}
            numbers |= {"numbers an image": int(np.prod(reader.shape)), "images/s": (len(images) - earlier) / seconds}
            show(f"Embeddings of {images.name}", numbers)
        if left_out:
            console.print(f"[yellow]{left_out} broken image{'s were' if left_out > 1 else ' was'} left out.")
        if path:
            console.print(f"Written to {path}", soft_wrap=True)
    return embedding


def require_place(path: Path) -> None:
    """Raises UserError when a file cannot be written there, or holds something else than embeddings, as a source."""
    files.require_file(path, "The embeddings", "give another --out FILE.")
    if path.exists():
        try:
            EmbeddingFile.open(path)
        except UserError:
            raise UserError(f"{path} holds something else than embeddings; give another --out FILE.") from None


def _facts(reader: Reader, images: ImageSet, o: Embed) -> dict[str, Any]:
    """The facts of a file: how the images were embedded, and what every result says."""
    settings = {"data": source_identity(o.data), "run": ritual.run_identity(o.run, "-")}
    return ritual.content_of({**reader.facts(o), "data": images.name, "typed_in": os.getcwd()}, settings)


def _of_rows(images: ImageSet, rows: Sequence[int]) -> dict[str, Any]:
    """The facts that are known at the end: how many images are left out, and the state of the files of the others."""
    return {"left_out": len(images) - len(rows), "images_mark": files_mark(Subset(images, np.array(rows)))}


def _written(reader: Reader, images: ImageSet, o: Embed, path: Path) -> tuple[Embedding, int]:
    """Embed piece by piece into parts, which a later call goes on with, then make one file of them.

    Also returns how many images an earlier call had done.
    """
    facts, labels = _facts(reader, images, o), labels_of(images)
    leads = distributed.rank() == 0
    lock = embedding_parts.folder_of(path) / embedding_parts.LOCK
    with files.lock(lock, f"Embeddings are written to {path}") if leads else nullcontext():
        parts = (
            Parts(path, embedding_parts.mark_of(reader.facts(o), images, source_identity(o.data))) if leads else None
        )
        rows: list[int] = sharing.by_first(lambda: parts.rows if parts else [])
        start, rows = embedding_parts.done_with(rows), [*rows]
        if start:
            console.print(f"Going on after {start:,} of {len(images):,} images.")
        try:
            for new, vectors in reader.pieces(images, start):
                if parts:
                    parts.add(new, vectors)
                rows += new.tolist()
        except KeyboardInterrupt:
            if distributed.size() > 1:
                raise  # ranks were stopped at different places: `together` ends them all, and the parts are kept
            done = f"{embedding_parts.done_with(rows):,} of {len(images):,} images"
            raise Interrupted(f"Stopped after {done}; give the same command again, and it goes on there.") from None
        facts |= _of_rows(images, rows)
        paths, classes = [images.path(row) for row in rows], [labels[row] for row in rows]
        if parts:
            with embedding_file.writing(path, facts) as writer:
                first = 0
                for new, vectors in parts:
                    piece = slice(first, first + len(new))
                    writer.write(paths[piece], classes[piece], vectors)
                    first = piece.stop
            parts.remove()
    return Embedding(paths, classes, facts, path), start


def _kept(reader: Reader, images: ImageSet, o: Embed) -> Embedding:
    labels, parts = labels_of(images), list(reader.pieces(images))
    rows = np.concatenate([rows for rows, _ in parts]).tolist()
    facts = {**_facts(reader, images, o), **_of_rows(images, rows)}
    vectors = np.concatenate([vectors for _, vectors in parts])
    return Embedding([images.path(row) for row in rows], [labels[row] for row in rows], facts, None, vectors)


def labels_of(images: ImageSet) -> list[str]:
    """The class of every image by name, empty where it has none."""
    if images.labels is None:
        return [""] * len(images)
    names = images.classes or ()
    return ["" if label == UNLABELLED else names[label] if names else str(label) for label in images.labels.tolist()]
