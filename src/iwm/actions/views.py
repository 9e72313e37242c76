"""Two photometric views of the same crops, and the action between them (paper section 3, appendix A).

From the crop I' shared by both, target `y = jitter(I')` and source `x = destroy(jitter'(I'))` with jitters drawn
independently; the action is `a = (w(y) - w(x)) / range` for the jitter and a flag for every destruction x carries.
Geometry is shared, so patch i of x shows what patch i of y shows. Several sources may share a target (`masks.sources`):
each is destroyed and jittered by itself, and its action leads to that one target.

For joint embeddings x and y are crops of their own, both with every transformation (BYOL's asymmetric set by default),
and there is no action between them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.reference import reference_actions, reference_space
from iwm.runtime.algebra import joined
from iwm.runtime.devices import upload
from iwm.runtime.randomness import seed_of, uniforms


@dataclass(frozen=True)
class Views:
    """A batch for the world model: what it sees, what it predicts and what it is told; images in [0, 1].

    There are s = b sources, or a multiple: source number j of image i is row j b + i.
    """

    source: Float[Tensor, "s 3 h w"]
    target: Float[Tensor, "b 3 h w"]
    action: Float[Tensor, "s k"]
    indices: Int64[np.ndarray, " b"]
    """The images' places in the data source."""
    source_parameters: Parameters
    """With `source_from: target` these come on top of the target's."""
    target_parameters: Parameters


@dataclass(frozen=True)
class TokenViews:
    """A batch of views that an encoder which stands still has already turned into tokens."""

    source: Float[Tensor, "b n d"]
    target: Float[Tensor, "b n d"]
    action: Float[Tensor, "b k"]
    indices: Int64[np.ndarray, " b"]
    """The images' places in the data source."""

    def chunk(self, parts: int) -> "list[TokenViews]":
        """The batch in equal parts."""
        tensors = (each.chunk(parts) for each in (self.source, self.target, self.action))
        return [TokenViews(*part) for part in zip(*tensors, np.split(self.indices, parts), strict=True)]


def make_views(
    crops: UInt8[Tensor, "b 3 h w"],
    space: ActionSpace,
    cfg: config.Actions,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    device: torch.device | str,
    *,
    clean: bool = False,
    sources: int = 1,
) -> Views:
    """Views of images already cropped and flipped, a pure function of the pixels and (seed, step, index, source).

    With `source_from: target` (the reading of the paper's section 3; appendix A builds both from the crop) the source
    is the target changed once more, so the action is that further change backwards: minus the extra jitter, and the
    flags. With `clean` the source is the crop as it is; `cfg.clean` leaves one of the two views as it is, the same for
    all sources, or without `clean` both. Each of several `sources` is drawn by itself; the first is the one that there
    would be alone.
    """
    images, neutral = upload(crops, device).float().div_(255), space.neutral(len(indices))
    target_parameters = space.sample(seed, step, indices, "target")
    clean_sources = np.full(len(indices), clean)
    if cfg.clean == "either" and not clean:
        clean_sources = uniforms(seed, "clean view", step, indices, 1)[:, 0] < 0.5
    if cfg.clean != "none":
        target_parameters = space.unchanged(target_parameters, ~clean_sources)
    if cfg.clean == "both":
        clean_sources[:] = True
    target = space.apply(images, target_parameters)
    on_target = cfg.source_from == "target" and not clean
    base, reference = (target, neutral) if on_target else (images, target_parameters)
    seeds = [seed_of(seed, "source", number) for number in range(sources)]
    parts = [space.unchanged(space.sample(own, step, indices, "source"), clean_sources) for own in seeds]
    source = joined([space.apply(base, part) for part in parts])
    action = joined([space.difference(part, reference) for part in parts])
    return Views(source, target, upload(action, device), indices, Parameters.joined(parts), target_parameters)


def reference_views(
    crops: UInt8[Tensor, "b 3 h w"],
    space: ActionSpace,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    device: torch.device | str,
) -> Views:
    """Views of the `reference_space`: runs are compared on these."""
    shown = reference_space(space, crops.shape[-1])
    return make_views(crops, shown, reference_actions(space.set), seed, step, indices, device)


def make_independent_views(
    crops: UInt8[Tensor, "b 3 h w"],
    others: UInt8[Tensor, "b 3 h w"],
    space: ActionSpace,
    cfg: config.Config,
    seed: int,
    step: int,
    indices: Int64[np.ndarray, " b"],
    device: torch.device | str,
) -> Views:
    """Views of two crops of each image, a pure function of the pixels and (seed, step, index); the action is null.

    Both carry every transformation of the space, with its probability, blur and solarize with those of `cfg.views`,
    which actions.level jitter leaves at 0.
    """
    source, target = _every(space, cfg, 0), _every(space, cfg, 1)
    parameters = source.sample(seed, step, indices, "source"), target.sample(seed, step, indices, "target")
    first, second = (upload(images, device).float().div_(255) for images in (crops, others))
    action = space.null(len(indices), device)
    return Views(source.apply(first, parameters[0]), target.apply(second, parameters[1]), action, indices, *parameters)


def _every(space: ActionSpace, cfg: config.Config, view: int) -> ActionSpace:
    """The space as one of two independent views has it: nothing is left to the source alone."""
    destroys = cfg.actions.level != "jitter"
    own = {"blur": cfg.views.blur[view], "solarize": cfg.views.solarize[view]} if destroys else {}
    changed = tuple(replace(t, both=True, probability=own.get(t.name, t.probability)) for t in space.transformations)
    return replace(space, transformations=changed)
