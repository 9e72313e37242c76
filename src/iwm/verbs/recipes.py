"""List the recipes with size and cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipes:
    pass


OPTIONS = Recipes
WORK = "iwm.cli.recipe_table:show"
