"""The loss of predicted tokens or pixels (paper equation 2).

L = mean_i || p(f(x_visible), a)_i - target(y)_i ||^2,   target(y) = norm(f-bar(y)), no gradient
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def latent_loss(prediction: Float[Tensor, "b q d"], target: Float[Tensor, "b q d"]) -> Float[Tensor, ""]:
    """Mean squared error over images, positions and channels, in float32 (paper equation 2 up to a constant; MAE)."""
    return F.mse_loss(prediction.float(), target.float())
