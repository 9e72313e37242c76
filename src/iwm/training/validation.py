"""What is checked of the settings before any work: names, numbers, and what does not go together."""

from iwm.config import Config, check_bounds
from iwm.model.conditioning import CONDITIONINGS
from iwm.model.objectives import OBJECTIVES, objective_of
from iwm.training.optimisers import OPTIMISERS


def validate(settings: Config) -> None:
    """Check that names are known, numbers make sense and settings go together.

    Raises UserError naming the first setting that does not.
    """
    OBJECTIVES.find(settings.objective.kind)
    CONDITIONINGS.find(settings.predictor.conditioning)
    OPTIMISERS.find(settings.optim.kind)
    check_bounds(settings)
    objective_of(settings).check()
