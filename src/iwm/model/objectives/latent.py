"""The teacher's tokens as targets (paper equation 2; I-JEPA, IWM).

L = mean_i || p(f(x_visible), a)_i - target(y)_i ||^2,   target(y) = norm(f-bar(y)), no gradient
"""

from iwm.model.objectives.prediction import PatchPrediction


class Latent(PatchPrediction):
    """Predict the EMA encoder's tokens of the target: a world model in latent space."""

    name = "latent"
    noun = "a latent world model"
    learned_targets = True
