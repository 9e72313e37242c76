"""Intersection over union, counted pixel by pixel.

IoU_c = hits_c / (truth_c + predicted_c - hits_c) over all pixels that count;   mIoU = its mean over the classes
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int16, Int64

from iwm.data.crops import IGNORED
from iwm.evaluation.uncertainty import bootstrap_error


@dataclass(frozen=True)
class Counts:
    """Pixels of every image and class, ignored ones left out."""

    hits: Int64[np.ndarray, "n c"]
    """Of this class and predicted so."""
    truth: Int64[np.ndarray, "n c"]
    predicted: Int64[np.ndarray, "n c"]

    def per_class_iou(self) -> Float[np.ndarray, " c"]:
        """IoU of every class over all images; NaN where it neither occurs nor is predicted."""
        return self._iou(np.ones((1, len(self.hits))))[0]

    def miou(self) -> float:
        """Mean over the classes that occur or are predicted."""
        return float(np.nanmean(self.per_class_iou()))

    def pixel_accuracy(self) -> float:
        return float(self.hits.sum() / self.truth.sum())

    def standard_error(self, seed: int, draws: int = 200) -> float:
        """Of the mIoU, by drawing the images anew with replacement."""
        return bootstrap_error(lambda weights: np.nanmean(self._iou(weights), axis=1), len(self.hits), seed, draws)

    def majority(self, kind: int) -> "Counts":
        """What predicting one class everywhere would count."""
        predicted = np.zeros_like(self.truth)
        predicted[:, kind] = self.truth.sum(axis=1)
        return Counts(np.minimum(predicted, self.truth), self.truth, predicted)

    def _iou(self, weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b c"]:
        hits, union = weights @ self.hits, weights @ (self.truth + self.predicted - self.hits)
        return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def count(
    predicted: Int64[np.ndarray, "h w"], truth: Int16[np.ndarray, "h w"], classes: int
) -> Int64[np.ndarray, "3 {classes}"]:
    """Hits, truth and predictions of one image."""
    known = truth != IGNORED
    predicted, truth = predicted[known], truth[known]
    parts = (truth[predicted == truth], truth, predicted)
    return np.stack([np.bincount(part, minlength=classes) for part in parts]).astype(np.int64)
