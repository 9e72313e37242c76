"""Masks a second: ours (4 blocks, exactly K patches in every image) against lightly's I-JEPA collator.

lightly's draws one context and 4 targets of the published sizes an image; its batch holds integers instead of images,
so that collating costs nothing.
"""

import importlib
from typing import Any

import numpy as np

from benchmarks.timing import Contender, Options, compare, show
from iwm.config import Masks
from iwm.model.masks import sample_masks

IMAGES = 64


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    rows, missing = [], []
    for grid in (8, 14):  # of the recipe cifar10 and of 224 px in patches of 16
        indices = np.arange(IMAGES)

        def ours(side: int = grid, indices: np.ndarray = indices) -> object:
            return sample_masks(Masks(), (side, side), 0, 1, indices, "cpu")

        field = [Contender("iwm", ours, IMAGES)]
        try:
            collator = importlib.import_module("lightly.data.ijepa_collate").IJEPAMaskCollator(
                input_size=grid * 16,
                patch_size=16,
                enc_mask_scale=(0.85, 1.0),
                pred_mask_scale=(0.15, 0.2),
                aspect_ratio=(0.75, 1.5),
                nenc=1,
                npred=4,
                min_keep=1,
            )
        except ImportError as error:
            missing = [f"lightly did not take part: {error}. See benchmarks/__init__.py."]
        else:
            batch = list(range(IMAGES))
            field.append(Contender("lightly collator", lambda collate=collator, b=batch: collate(b), IMAGES))
        rows += compare(field, options, grid=f"{grid} x {grid}")
    show("masks", rows)
    return rows, missing
