"""A seeded part of a source's training images to learn from and others to measure on:
python part.py SOURCE OUT.npz [16000 [4000 [32]]], the last the side of the pictures in pixels

The test split stays unseen: it is for what is reported, not for what is chosen.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.runtime import files
from iwm.runtime.randomness import permutation

source, out, *counts = sys.argv[1:]
learned, measured, size = [int(count) for count in counts] + [16_000, 4_000, 32][len(counts) :]
images = open_images(source, "train")
assert images.labels is not None, "a labelled source"
order = permutation(0, "ablation", 0, len(images))
assert images.classes is not None
arrays: dict[str, Any] = {"classes": np.array(images.classes)}
for prefix, chosen in (("", order[:learned]), ("val_", order[learned : learned + measured])):
    if not len(chosen):
        continue
    pixels, kept = load_all(Subset(images, chosen), size)
    arrays[f"{prefix}images"] = pixels.permute(0, 2, 3, 1).numpy()
    arrays[f"{prefix}labels"] = images.labels[chosen[kept]]
with files.replacing(Path(out)) as part, part.open("wb") as file:
    np.savez(file, **arrays)
