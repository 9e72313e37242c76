"""The recipes as a table, with their sizes and cost."""

from rich.table import Table

from iwm import recipe_book
from iwm.model.cost import cost
from iwm.model.objectives import objective_of
from iwm.runtime.console import console
from iwm.verbs.recipes import Recipes


def show(options: Recipes) -> None:
    """Print all recipes with their sizes and cost, a family at a time."""
    table = Table(title="Recipes", box=None, padding=(0, 1, 0, 0))
    for column in ("recipe", "px", "encoder", "predictor", "conditioning", "weights", "GFLOPs"):
        table.add_column(column, no_wrap=True)
    family = ""
    for name in recipe_book.RECIPES:
        s = recipe_book.get(name)
        c = cost(s)
        e, objective = s.encoder, objective_of(s)
        before, family = family, next((known for known in recipe_book.FAMILIES if name.startswith(f"{known}-")), "")
        if family != before:
            table.add_row()
        table.add_row(
            name,
            f"{s.data.image_size}/{e.patch_size}",
            f"{e.depth}x{e.width}",
            objective.size,
            s.predictor.conditioning if objective.predicts else "",
            f"{(c.encoder_parameters + c.predictor_parameters) / 1e6:.3g} M",
            f"{c.train_flops / 1e9:.3g}",
        )
    console.print(table)
    console.print(
        "The first group are image world models; the others are there to be compared with them (docs/families.md). "
        "px: side of the images and of a patch, pixels. encoder, predictor: blocks x width. weights: of both. "
        "GFLOPs: a training step, for one image. Below ImageNet's size image world models and ijepa-* are trained by "
        "Muon, the others by AdamW.\n"
        "Start one: iwm pretrain RECIPE --data.source S --out RUN"
    )
