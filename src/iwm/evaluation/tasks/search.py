"""The images of a source that look like one image, or as it would look after a change.

    score_j = cos((q - mean) / std, (z_j - mean) / std)        mean, std: of the source's embeddings z

    q = pool f(x)           z_j = pool f(y_j)                  without an action
    q = pool p(f(x), a)     z_j = pool target(y_j)             with an action a: what the image would look like

Every image is compared (exact search), some thousand at a time. Beside it stands what colours alone find, those of the
really changed image.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from iwm.data import memory
from iwm.data.file_states import files_mark
from iwm.data.image_sets import ImageSet, Subset
from iwm.data.loader import load_all, load_chunks, load_one
from iwm.data.sources import EMBEDDED, open_images
from iwm.evaluation import ritual
from iwm.evaluation.ritual import Outcome
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.embed import AT_ONCE, Reader, TargetEncoder, labels_of
from iwm.evaluation.tasks.embedding_file import EmbeddingFile
from iwm.evaluation.tasks.features import Pixels, RawPixels
from iwm.run_folder import plain_name
from iwm.runtime import drawing
from iwm.runtime.console import console, table
from iwm.runtime.drawing import put_picture, put_words
from iwm.runtime.errors import UserError
from iwm.verbs.embed import Reading
from iwm.verbs.search import Search

PIXELS = 8
"""Side of the pictures that are compared by their colours."""
Pieces = Callable[[], Iterable[Float32[np.ndarray, "_ d"]]]
"""The embeddings of a source in their order, a piece at a time; called once for every pass over them."""


def search(o: Search) -> dict[str, Any]:
    """Write RUN/eval/search-IMAGE-...-DATA.json and .png, the nearest images with their scores; returns the content.

    The image itself is left out where it lies in the source. Raises UserError for a RUN, a source, an image or an
    action that cannot be read, for a source without another image, for a model whose numbers are not finite, and for a
    file of embeddings of another encoder, of other images, or of images that were changed since.
    """
    with ritual.evaluation("search", o) as work:
        file = EmbeddingFile.open(Path(o.features).expanduser()) if o.features else None
        reader = Reader.open(_reading(o, file), work.session)
        asking = reader.after(o.action)
        if file and file.facts["identity"] != reader.encoder.identity():
            raise UserError(f"{file.path} was written with other weights than {o.run} has; run iwm embed again.")
        images = open_images(o.data, "all", size=reader.encoder.size)
        query, (own,) = load_one(o.like, reader.encoder.size), keys_of([o.like], o.data)
        if len(images) == 1:
            require_others(keys_of([images.path(0)], o.data), own, o)
        start = time.perf_counter()
        gallery = Gallery.of_file(file, images, o.data) if file else Gallery.of_images(reader, images, o.data)
        require_others(gallery.keys, own, o)
        encoded = time.perf_counter()
        hits = gallery.nearest(asking(query).numpy()[0], own, o.nearest)
        if not hits:
            raise UserError(f"The embeddings by {o.run} are not finite, so nothing is nearest; take another RUN.")
        seconds = {"encoding": encoded - start, "searching": time.perf_counter() - encoded}
        changed = asking.encoder.changed(query) if isinstance(asking.encoder, TargetEncoder) else query
        by_pixels = Gallery.of_pixels(images, gallery).nearest(colours(changed)[0], own, o.nearest) if o.pixels else []
        payload = {
            "data": images.name,
            "query": o.like,
            "action": o.action,
            "encoder": asking.encoder.name,
            "pooling": reader.pooling,
            "searched": len(gallery.paths),
            "left_out": len(images) - len(gallery.paths),
            "itself_in_the_source": own in gallery.keys,
            "nearest": hits,
            **({"nearest_by_pixels": by_pixels} if o.pixels else {}),
            "seconds": seconds,
        }
        facts = reader.facts(_reading(o, file))
        outcome = Outcome(
            data=images.name,
            payload=payload,
            settings={
                **work.chosen(o, "action", "nearest", "pixels", data=o.data, like=o.like, features=o.features),
                **{name: facts[name] for name in READ},
            },
            variant=(plain_name(Path(o.like).stem)[:40], o.action),
            figures={"": lambda: sheet(query, images, payload)},
        )
        return work.conclude(outcome, _show)


READ = ("space", "pooling", "student", "layer", "layers", "image_size")
"""How images are embedded, as a result says it."""


def _reading(o: Search, file: EmbeddingFile | None) -> Reading:
    """How the source's images are embedded: as in the file, where one is given. Raises UserError when it does not
    suit."""
    space = "target" if o.in_target_space else "encoder"
    if file is None:
        names = ("pooling", "student", "layer", "layers", "size")
        return Reading(run=o.run, data=o.data, space=space, **{name: getattr(o, name) for name in names})
    facts, again = file.facts, "write another with `iwm embed RUN S"
    if facts["action"]:
        raise UserError(f"{file.path} holds images as they look after {facts['action']}; {again}` and no action.")
    if facts["pooling"] == "tokens":
        raise UserError(f"{file.path} holds all tokens, no single vector of an image; {again} --pooling mean`.")
    if space == "target" and facts["space"] != "target":
        raise UserError(f"{file.path} is not in the space that is predicted; {again} --space target`.")
    names = ("space", "pooling", "student", "layer", "layers", "size")
    return Reading(run=o.run, data=o.data, **{name: facts[name] for name in names})


def require_others(keys: Iterable[str], own: str, o: Search) -> None:
    """Raises UserError unless a source has an image that can be read beside the one that is looked for."""
    if all(key == own for key in keys):
        raise UserError(f"{o.data} has no readable image beside {o.like} itself; give a source of more images.")


def keys_of(paths: Iterable[str], source: str, typed_in: str = "") -> list[str]:
    """What tells whether two paths mean the same image, whatever folder they were typed in and whatever links lead
    there; of images that are links themselves each is its own."""
    if source in EMBEDDED or memory.is_memory(source):
        return list(paths)
    places: dict[str, str] = {}  # each folder is looked up once
    keys = []
    for path in paths:
        folder, name = os.path.split(os.path.abspath(os.path.join(typed_in, os.path.expanduser(path))))
        if folder not in places:
            places[folder] = os.path.realpath(folder)
        keys.append(os.path.join(places[folder], name))
    return keys


# ---- the gallery ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gallery:
    """The images that are searched."""

    pieces: Pieces
    rows: Sequence[int]
    """Their places in the source."""
    paths: Sequence[str]
    labels: Sequence[str]
    keys: Sequence[str] = field(repr=False)

    @classmethod
    def of_images(cls, reader: Reader, images: ImageSet, source: str) -> "Gallery":
        """Encode the images, of which only the embeddings are kept."""
        parts = list(reader.pieces(images))
        rows = np.concatenate([rows for rows, _ in parts]).tolist()
        paths, labels = [images.path(row) for row in rows], labels_of(images)
        keys = keys_of(paths, source)
        return cls(lambda: (vectors for _, vectors in parts), rows, paths, [labels[row] for row in rows], keys)

    @classmethod
    def of_file(cls, file: EmbeddingFile, images: ImageSet, source: str) -> "Gallery":
        """The images of a file of embeddings. Raises UserError when one of them is not in the source, or was changed
        since; files of earlier versions do not say how their images were."""
        here = keys_of((images.path(row) for row in range(len(images))), source)
        places = {key: row for row, key in enumerate(here)}
        keys = keys_of(file.paths, source, file.facts["typed_in"])
        strange = next((path for path, key in zip(file.paths, keys, strict=True) if key not in places), "")
        if strange:
            raise UserError(f"{file.path} holds {strange}, which {source} does not; give the source it was written of.")
        rows = [places[key] for key in keys]
        mark = file.facts.get("images_mark")
        if mark and mark != files_mark(Subset(images, np.array(rows))):
            raise UserError(f"Images of {source} were changed since {file.path} was written; run iwm embed again.")
        return cls(file.pieces, rows, file.paths, file.labels, keys)

    @classmethod
    def of_pixels(cls, images: ImageSet, gallery: "Gallery") -> "Gallery":
        """The same images by their colours."""
        subset = Subset(images, np.array(gallery.rows))
        at_once = max(1, AT_ONCE // (3 * PIXELS**2 * 64))
        parts = [colours(pixels) for pixels, _ in load_chunks(subset, 8 * PIXELS, at_once)]
        return replace(gallery, pieces=lambda: parts)

    def nearest(self, query: Float32[np.ndarray, " d"], own: str, count: int) -> list[dict[str, Any]]:
        """The `count` most similar images without the one whose key is `own`, the most similar first."""
        scores = cosines(self.pieces, query)
        scores[[place for place, key in enumerate(self.keys) if key == own]] = -np.inf
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        order = [place for place in order[:count].tolist() if np.isfinite(scores[place])]
        return [
            {
                "path": self.paths[place],
                "label": self.labels[place],
                "score": float(scores[place]),
                "row": self.rows[place],
            }
            for place in order
        ]


def colours(pixels: Pixels) -> Float32[np.ndarray, "b d"]:
    """The pictures at 8 x 8 pixels."""
    return features.pooled(RawPixels(PIXELS, pixels.shape[-1])(pixels), "mean").numpy()


def cosines(pieces: Pieces, query: Float32[np.ndarray, " d"]) -> Float32[np.ndarray, " n"]:
    """Cosine of the query and every row, both standardised by the rows' mean and deviation.

    A feature that hardly varies keeps its scale, as in `runtime.algebra.standardisation`.
    """
    count, first = 0, np.zeros(len(query))
    second = np.zeros(len(query))
    origin: np.ndarray | None = None  # a row, so that the squares do not cancel
    for rows in pieces():
        origin = rows[0].astype(np.float64) if origin is None else origin
        centred = rows - origin
        count += len(rows)
        first += centred.sum(axis=0)
        second += np.square(centred).sum(axis=0)
    assert origin is not None
    mean = first / count
    deviation = np.sqrt(np.maximum(second / count - np.square(mean), 0))
    deviation[deviation <= 1e-6 * max(float(deviation.max()), 1e-12)] = 1.0
    middle, scale = (origin + mean).astype(np.float32), (1 / deviation).astype(np.float32)
    wanted = (query - middle) * scale
    wanted /= max(float(np.linalg.norm(wanted)), 1e-12)
    parts = []
    for rows in pieces():
        standardised = (rows - middle) * scale
        parts.append(standardised @ wanted / np.maximum(np.linalg.norm(standardised, axis=1), 1e-12))
    return np.concatenate(parts)


# ---- what is shown -------------------------------------------------------------------------------------------------


def _show(content: Mapping[str, Any]) -> None:
    words = f"like {Path(content['query']).name}" + (f" after {content['action']}" if content["action"] else "")
    rows = [[hit["score"], hit["label"] or None, hit["path"]] for hit in content["nearest"]]
    console.print(table(f"Images of {content['data']} {words}", ["score", "label", "image"], rows))
    console.print(
        f"{content['searched']:,} images searched in {content['seconds']['searching']:.2f} s, by "
        f"{content['encoder']}{'; the image itself is left out' if content['itself_in_the_source'] else ''}."
    )
    if count := content["left_out"]:
        images = "image of the source was" if count == 1 else "images of the source were"
        console.print(f"[yellow]{count:,} {images} not searched: broken, or not there.")


ACROSS = 5
"""Images in a row of the sheet."""
SIDE, GAP, MARGIN, HEAD, CAPTION = 1.2, 0.12, 0.14, 0.34, 0.42
"""Inches of the sheet."""
LETTERS = 20
"""Of a caption, which is as wide as an image."""


def sheet(query: UInt8[Tensor, "1 3 s s"], images: ImageSet, payload: Mapping[str, Any]) -> Figure:
    """The image that was looked for, and the nearest ones with score and label; those by colours below."""
    blocks = {payload["encoder"]: payload["nearest"]}
    if "nearest_by_pixels" in payload:
        really = " of the really changed image" if payload["action"] else ""
        blocks[f"colours alone{really}, {PIXELS} x {PIXELS} pixels"] = payload["nearest_by_pixels"]
    lines = [-(-len(hits) // ACROSS) for hits in blocks.values()]
    step, left = SIDE + GAP, MARGIN + 1.45 * SIDE
    height = sum(HEAD + count * (SIDE + CAPTION) for count in lines)
    figure = drawing.blank(left + ACROSS * step + MARGIN, max(height, HEAD + SIDE + CAPTION) + 0.1)
    put_words(figure, "image", MARGIN, 0.1, 9.5, weight="bold")
    put_picture(figure, query[0], MARGIN, HEAD, SIDE)
    if payload["action"]:
        put_words(figure, "after " + payload["action"].replace(",", "\n"), MARGIN, HEAD + SIDE + 0.06, 8)
    top = 0.0
    for (name, hits), count in zip(blocks.items(), lines, strict=True):
        put_words(figure, f"nearest by {name}", left, top + 0.1, 9.5, weight="bold")
        shown, kept = load_all(Subset(images, np.array([hit["row"] for hit in hits])), query.shape[-1])
        for place, picture in zip(kept.tolist(), shown, strict=True):
            hit, across, down = hits[place], place % ACROSS, place // ACROSS
            x, y = left + across * step, top + HEAD + down * (SIDE + CAPTION)
            put_picture(figure, picture, x, y, SIDE)
            words = hit["label"] or Path(hit["path"]).name
            words = words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"
            put_words(figure, f"{hit['score']:.3f}\n{words}", x, y + SIDE + 0.05, 7.5)
        top += HEAD + count * (SIDE + CAPTION)
    return figure
