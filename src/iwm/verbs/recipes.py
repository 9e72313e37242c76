"""List the recipes with size and cost, or all settings of one beside the paper's."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from iwm.verbs.shared import Options


@dataclass(frozen=True, kw_only=True)
class Recipes(Options):
    name: Annotated[Positional[str], arg(metavar="RECIPE")] = ""
    """Name of a recipe, to see all its settings."""


OPTIONS = Recipes
WORK = "iwm.cli.recipe_table:show"
EXAMPLE = "iwm recipes cifar10"
