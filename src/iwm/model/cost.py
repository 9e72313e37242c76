"""What a configuration costs: parameters and floating-point operations, counted from its sizes.

A linear layer costs 2 x inputs x outputs per token, attention 4 x tokens^2 x width per block; a backward pass twice
the forward. Counted are the needed operations only: context tokens through the student (forward and backward), all
patches through the teacher (forward), context and queries through the predictor (forward and backward). Each objective
counts its own step (`iwm.model.objectives`): pixels have no teacher; a joint embedding sends two views through student,
teacher and the MLPs that compare them.
"""

from dataclasses import dataclass, replace

from iwm.actions.action_space import ActionSpace
from iwm.config import Config
from iwm.model.flops import encoder_parameters
from iwm.model.objectives import objective_of


@dataclass(frozen=True)
class Cost:
    """Parameters, and FLOPs of one image."""

    encoder_parameters: int
    predictor_parameters: int
    """Of a joint embedding: of the projector and its predictor MLP."""
    train_flops: float
    """One image's share of a training step, on average where the images grow (data.start_size)."""


def at_start(settings: Config) -> Config:
    """The settings as they are for the first steps of a training whose images grow."""
    data = settings.data
    return replace(settings, data=replace(data, image_size=data.start_size or data.image_size, start_size=0))


def cost(settings: Config) -> Cost:
    """Count from the sizes alone; no weights are made.

    Raises UserError for an unknown objective, conditioning or action set.
    """
    objective, data = objective_of(settings), settings.data
    actions = ActionSpace.from_config(settings.actions, settings.data.image_size).dim
    share = data.start_share if data.start_size else 0.0
    return Cost(
        encoder_parameters(settings),
        objective.parameter_count(actions),
        share * objective_of(at_start(settings)).step_flops(actions) + (1 - share) * objective.step_flops(actions),
    )
