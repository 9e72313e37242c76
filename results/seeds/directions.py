"""Whether a linear probe is held back by the directions in which features follow photometric changes.

    python results/seeds/directions.py path/to/eurosat.zip runs/seeds/*-seed?

Of every pretraining: the EMA encoder's last block, mean-pooled, on EuroSAT's clean images. The directions are sorted by
how much of their variance photometric changes of an image make (six of 400 training images, the world model's own
changes for every pretraining): generalised eigenvectors of the covariance within images and that of all clean ones. The
probe is `iwm probe`'s, on whitened features, without the first K of these directions and with them alone. Written to
directions.json beside this file; 20 seconds of one core a pretraining.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import iwm
from iwm.actions.reference import reference_space
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.evaluation.tasks.fitting import accuracy
from iwm.evaluation.tasks.linear import choose_l2, fit_chosen
from iwm.recipe_book import get
from iwm.runtime import files

SIZE, CHANGED, CHANGES = 64, 400, 6
WITHOUT, ALONE = (0, 4, 16, 48, 96), (16, 48, 96)
GRID = (0.3, 0.1, 0.03, 0.01, 0.003)


def features(model: iwm.ImageWorldModel, images: Tensor) -> Tensor:
    """(n, d): the mean of the last block's tokens."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        parts = [model.encode(part).values.float().mean(1) for part in images.split(128)]
    return torch.cat(parts)


def labelled(source: str, split: str) -> tuple[Tensor, Tensor]:
    """Images in 0..1 and their labels."""
    images = open_images(source, split)
    pixels, kept = load_all(images, SIZE)
    assert images.labels is not None
    return pixels.float() / 255, torch.as_tensor(np.asarray(images.labels)[kept])


def measured(
    model: iwm.ImageWorldModel, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], changed: list[Tensor]
) -> dict[str, Any]:
    seen, unseen = features(model, train[0]), features(model, test[0])
    mean, std = seen.mean(0), seen.std(0)
    seen, unseen = (seen - mean) / std, (unseen - mean) / std
    views = torch.stack([(features(model, images) - mean) / std for images in changed])
    within = (views - views.mean(0)).flatten(0, 1).double()
    of_change = within.T @ within / (len(within) * (CHANGES - 1) / CHANGES)
    of_images = torch.cov(seen.T.double())
    values, vectors = torch.linalg.eigh(of_images)
    kept = values > 1e-6 * values.max()
    whitened = vectors[:, kept] / values[kept].sqrt()
    own = torch.linalg.eigh(whitened.T @ of_change @ whitened).eigenvectors.flip(1)
    directions = (whitened @ own).float()
    classes = int(train[1].max()) + 1

    def top1(columns: Tensor) -> float:
        tried = choose_l2(seen @ columns, train[1], classes, GRID, 0, beyond=True)
        fit = fit_chosen(seen @ columns, train[1], classes, tried)
        return round(accuracy(fit.logits(unseen @ columns), test[1]), 4)

    return {
        "change_over_images": round(float(of_change.trace() / of_images.trace()), 4),
        "without": {count: top1(directions[:, count:]) for count in WITHOUT},
        "alone": {count: top1(directions[:, :count]) for count in ALONE},
    }


def main(source: str, *runs: str) -> None:
    train, test = labelled(source, "train"), labelled(source, "val")
    space = reference_space(iwm.ActionSpace.from_config(get("eurosat").actions, SIZE), SIZE)
    changed = [space.apply(train[0][:CHANGED], space.sample_bank(0, change, CHANGED)) for change in range(CHANGES)]
    path = Path(__file__).with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    for run in runs:
        found[Path(run).name] = measured(iwm.load(run), train, test, changed)
        print(Path(run).name, found[Path(run).name], flush=True)
        with files.replacing(path) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
