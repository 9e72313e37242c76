"""16,000 of a source's training images to learn from and 4,000 others to measure on: python part.py SOURCE OUT.npz

The test split stays unseen: it is for what is reported, not for what is chosen.
"""

import sys

import numpy as np

from iwm.images import Subset, open_images
from iwm.loader import load_all
from iwm.randomness import permutation

source, out = sys.argv[1:]
images = open_images(source, "train")
assert images.labels is not None, "a labelled source"
order = permutation(0, "ablation", 0, len(images))
arrays = {}
for prefix, chosen in (("", order[:16_000]), ("val_", order[16_000:20_000])):
    pixels, kept = load_all(Subset(images, chosen), 32)
    arrays[f"{prefix}images"] = pixels.permute(0, 2, 3, 1).numpy()
    arrays[f"{prefix}labels"] = images.labels[chosen[kept]]
np.savez(out, **arrays)
