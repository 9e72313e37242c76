"""A seeded choice of a source's images, kept as an .npz that is a source itself."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from iwm.data.decode import BrokenImage
from iwm.data.image_sets import ImageSet
from iwm.data.loader import load_all
from iwm.data.splits import share_of_each_class
from iwm.evaluation import ritual
from iwm.run_folder import plain_name
from iwm.runtime import files


def write(train_set: ImageSet, test_set: ImageSet, counts: tuple[int, int], size: int, seed: int, folder: Path) -> str:
    """Write a seeded choice of both splits, evenly from all classes, as an .npz in `folder`; returns its path.

    Counts of 0 keep all. Pictures are squared at twice `size` where they are that large: a random crop of 0.3 of the
    area is then not enlarged.
    """
    chosen = [
        share_of_each_class(images, count, seed) for images, count in zip((train_set, test_set), counts, strict=True)
    ]
    side = max(size, min(2 * size, *_dimensions(train_set)))
    paths = [images.path(0) for images in (train_set, test_set)]
    mark = ritual.fingerprint({"paths": paths, "side": side, "seed": seed, "all": [len(train_set), len(test_set)]})
    path = folder / f"{plain_name(train_set.name)}-{len(chosen[0])}x{len(chosen[1])}-{mark[:6]}.npz"
    if path.exists():
        return str(path)
    arrays: dict[str, Any] = {}
    for prefix, images in zip(("", "val_"), chosen, strict=True):
        pixels, kept = load_all(images, side)
        arrays[f"{prefix}images"] = pixels.permute(0, 2, 3, 1).numpy()
        if images.labels is not None and images.classes is not None:
            arrays |= {f"{prefix}labels": images.labels[kept], "classes": np.array(images.classes)}
    with files.replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
    return str(path)


def _dimensions(images: ImageSet) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    for index in range(len(images)):
        with suppress(BrokenImage):  # it is named when it is decoded
            return images.dimensions(index)
    return 0, 0
