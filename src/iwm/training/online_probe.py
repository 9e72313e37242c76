"""The online probe: a quick accuracy during pretraining, when the source has labels.

A ridge-regression classifier (closed form) on the EMA encoder's mean-pooled tokens of a fixed subset: it is for curves,
`iwm probe` is for results. Fitted to 2,000 images it shows less of a difference than there is, and scored on 1,000 it
is off by .016 (`probe_top1_standard_error`): it does not choose between runs (docs/small-data.md). Its strength is
chosen at every line by leaving each of the 2,000 out: one strength for all data either hides what is learned late or
what is small (docs/lab-notes.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from iwm import config
from iwm.data.image_sets import UNLABELLED, ImageSet, Subset
from iwm.data.loader import load_all
from iwm.data.splits import shuffled_rows
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import distributed
from iwm.runtime.algebra import best_strength, double, left_out, ridge, search, standardisation
from iwm.training.callbacks import Callback, State

TRAIN, VAL = 2000, 1000
LEAST = 100
"""Images with labels, of which fewer say nothing."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties of the ridge that are tried, over the mean curvature."""


def ridge_accuracy(
    train: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], val: Float[Tensor, "m d"], truth: Int64[Tensor, " m"]
) -> float:
    """Accuracy on val of one-against-all least squares on standardised features.

    Of STRENGTHS the one is taken that classifies most of `train` where the image in question is left out; of equals the
    strongest.
    """
    train, val = double(train), double(val)
    labels, truth = labels.to(train.device), truth.to(train.device)
    mean, std = standardisation(train, correction=1, floor=1e-6)
    train, val = (train - mean) / std, (val - mean) / std
    onehot = torch.nn.functional.one_hot(labels, int(labels.max()) + 1).double()
    scale = float(train.square().mean()) or 1.0  # the mean curvature; 0 where no feature varies

    def left_out_accuracies(strengths: Sequence[float]) -> list[float]:
        kept = (left_out(train, onehot, l2=strength * scale).argmax(1) for strength in strengths)
        return [float((predicted == labels).double().mean()) for predicted in kept]

    strength = best_strength(search(STRENGTHS, left_out_accuracies, beyond=False))
    weight, bias = ridge(train, onehot, l2=strength * scale)
    predicted = (val @ weight + bias).argmax(1)
    return float((predicted == truth).double().mean())


def pooled(model: ImageWorldModel, images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """The EMA encoder's mean tokens; of the last block where it is trained beyond `encoder.layer`."""
    if not model.settings.objective.invariance_weight:
        return model.encode(images).pooled.float()
    return model.target_encoder.intermediates(images, [model.target_encoder.depth])[0].mean(dim=1).float()


def has_probe(source: ImageSet) -> bool:
    """Whether enough training images have labels."""
    return source.labels is not None and int((source.labels != UNLABELLED).sum()) >= LEAST


class OnlineProbe(Callback):
    """Fixed train and validation subsets of a labelled source, as uint8 crops."""

    def __init__(self, images: UInt8[Tensor, "n 3 s s"], labels: Int64[Tensor, " n"]) -> None:
        self.images, self.labels = images, labels
        self.train = len(images) * TRAIN // (TRAIN + VAL)

    @classmethod
    def for_run(cls, source: ImageSet, settings: config.Config) -> "OnlineProbe | None":
        """None when the source has no labels or too few images. Subsets are of the training images, seeded."""
        if not has_probe(source):
            return None
        assert source.labels is not None
        labelled = np.flatnonzero(source.labels != UNLABELLED)
        chosen = labelled[shuffled_rows(TRAIN + VAL, len(labelled), settings.run.seed)]
        images, kept = load_all(Subset(source, chosen), settings.data.image_size)
        return cls(images, torch.from_numpy(source.labels[chosen[kept]]))

    @torch.no_grad()
    def accuracy(self, model: ImageWorldModel) -> float:
        """Accuracy on the validation part; of several ranks each encodes its share of the images."""
        device = model.device

        def encode(rows: list[int]) -> Float[Tensor, "n d"]:
            done = []
            for part in torch.tensor(rows).split(250):
                done.append(pooled(model, self.images[part].to(device)))
                distributed.advance()
            return torch.cat(done)

        features = distributed.shared_rows(len(self.images), encode)
        n, labels = self.train, self.labels.to(device)
        return ridge_accuracy(features[:n], labels[:n], features[n:], labels[n:])

    def on_log(self, state: State, line: dict[str, Any]) -> None:
        """Every `run.probe_every` lines, and at the end."""
        every = state.settings.run.log_every * state.settings.run.probe_every
        if state.final or state.step % every == 0:
            with state.training.session.autocast():
                line["probe_top1"] = right = self.accuracy(state.model)
            line["probe_top1_standard_error"] = (right * (1 - right) / (len(self.images) - self.train)) ** 0.5
