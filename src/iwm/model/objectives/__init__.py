"""What a model is trained to do: each objective owns its targets, loss, health and cost, and is found by its name."""

from iwm.config import Config
from iwm.model.objectives.joint import Joint
from iwm.model.objectives.latent import Latent
from iwm.model.objectives.objective import Objective
from iwm.model.objectives.pixels import Pixels
from iwm.model.objectives.prediction import PatchPrediction
from iwm.runtime.registry import Registry

__all__ = ["OBJECTIVES", "Objective", "PatchPrediction", "objective_of", "register_objective"]

OBJECTIVES = Registry(Objective, "objective.kind", "register_objective", Latent, Pixels, Joint)
"""Every objective by its name."""
register_objective = OBJECTIVES.register


def objective_of(settings: Config) -> Objective:
    """The objective that the settings name. Raises UserError when there is none of that name."""
    return OBJECTIVES.find(settings.objective.kind)(settings)
