"""The changes that all models of a built-in set are measured on, whatever they were trained on: so numbers compare."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from iwm import config
from iwm.actions.action_sets import BUILT_IN, members_of
from iwm.actions.action_space import ActionSpace, adapted


def reference_actions(name: str) -> config.Actions:
    """The settings behind `reference_space`, of the action set of that name: the level `destructive`, every image
    jittered."""
    return config.Actions(set=name, jitter_probability=1.0)


def reference_space(space: ActionSpace, image_size: int) -> ActionSpace:
    """The action space that every model of a built-in set is measured in, whatever changes it was trained on: every
    transformation as the set has it. One of the user's is as the model was trained with it."""
    if space.set not in BUILT_IN:
        return space
    known = {member.name: adapted(member) for member in members_of(reference_actions(space.set), image_size)}
    return ActionSpace(tuple(known.get(t.name, t) for t in space.transformations), set=space.set)


def wider_space(space: ActionSpace, image_size: int) -> ActionSpace:
    """The space of the model with every range at least as wide as the reference's."""
    pairs = zip(space.transformations, reference_space(space, image_size).transformations, strict=True)
    return dataclasses.replace(space, transformations=tuple(max(pair, key=lambda t: t.range) for pair in pairs))


def in_reference_units(space: ActionSpace, image_size: int) -> Float[Tensor, " k"]:
    """What an action is multiplied by to count in shares of the reference's ranges: errors of models that were trained
    on other ranges are then comparable. 1 for flags."""
    reference = reference_space(space, image_size).transformations
    pairs = zip(space.transformations, reference, strict=True)
    return torch.tensor([t.range / r.range if t.graded and r.range > 0 else 1.0 for t, r in pairs])


def bank_ranges(space: ActionSpace) -> list[tuple[str, float, float]]:
    """What a bank's entries are drawn from: name and range of every graded transformation of both views."""
    return [(t.name, t.low, t.high) for t in space.transformations if t.graded and t.both]
