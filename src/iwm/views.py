"""Two photometric views of the same crops, and the action between them (paper section 3, appendix A).

From the crop I' shared by both, target `y = jitter(I')` and source `x = destroy(jitter'(I'))` with jitters drawn
independently; the action is `a = (w(y) - w(x)) / range` for the jitter and a flag for every destruction x carries.
Geometry is shared, so patch i of x shows what patch i of y shows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from iwm import config
from iwm.actions import ActionSpace, Parameters


@dataclass(frozen=True)
class Views:
    """A batch for the world model: what it sees, what it predicts and what it is told; images in [0, 1]."""

    source: Float[Tensor, "b 3 h w"]
    target: Float[Tensor, "b 3 h w"]
    action: Float[Tensor, "b k"]
    indices: Int64[np.ndarray, " b"]
    """The images' places in the data source."""
    source_parameters: Parameters
    """With `source_from: target` these come on top of the target's."""
    target_parameters: Parameters


def make_views(
    crops: UInt8[Tensor, "b 3 h w"],
    space: ActionSpace,
    cfg: config.Actions,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    device: torch.device | str,
) -> Views:
    """Views of images already cropped and flipped, a pure function of the pixels and (seed, step, index).

    With `source_from: target` (the reading of the paper's section 3; appendix A builds both from the crop) the source
    is the target changed once more, so the action is that further change backwards: minus the extra jitter, and the
    flags.
    """
    images = crops.to(device, non_blocking=True).float().div_(255)
    source_parameters = space.sample(seed, step, indices, "source")
    target_parameters = space.sample(seed, step, indices, "target")
    target = space.apply(images, target_parameters)
    if cfg.source_from == "target":
        source = space.apply(target, source_parameters)
        action = space.difference(source_parameters, space.neutral(len(indices)))
    else:
        source = space.apply(images, source_parameters)
        action = space.difference(source_parameters, target_parameters)
    action = action.to(device, non_blocking=True)
    return Views(source, target, action, indices, source_parameters, target_parameters)
