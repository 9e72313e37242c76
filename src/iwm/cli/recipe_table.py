"""The recipes as a table, with their sizes and cost; and all settings of one beside the paper's."""

from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from iwm import config, recipe_book
from iwm.model.cost import cost
from iwm.model.objectives import objective_of
from iwm.runtime import fields
from iwm.runtime.console import console, tables_are_printed
from iwm.runtime.options import options, typed
from iwm.verbs.recipes import Recipes

COLUMNS = ("recipe", "px", "encoder", "predictor", "action", "weights", "GFLOPs")
"""Short words: the longest recipe and all columns fit into a terminal of 80 columns."""
OF_PAPER = ("imagenet-vitb16-equi", "imagenet-vitb16-inv", "imagenet-vitl16")
"""Recipes of the paper (Garrido et al. 2024); others are held against the first."""
NO_PAPERS = ("data.source", "init", "speed.", "run.")
"""Settings that say nothing of the method."""


def show(o: Recipes) -> list[dict[str, Any]]:
    """Print all recipes with their sizes and cost, a family at a time, or one with all its settings; returns the lines.

    Raises UserError for an unknown name.
    """
    if o.name:
        rows = settings_of(o.name)
        if tables_are_printed():
            _print_settings(o.name, rows)
        return rows
    rows = [_row(name) for name in recipe_book.RECIPES]
    if tables_are_printed():
        _print_all(rows)
    return rows


# ---- all -----------------------------------------------------------------------------------------------------------


def _row(name: str) -> dict[str, Any]:
    """A recipe's line of the table, with numbers as they are."""
    s = recipe_book.get(name)
    c = cost(s)
    objective = objective_of(s)
    return {
        "recipe": name,
        "image_size": s.data.image_size,
        "patch_size": s.encoder.patch_size,
        "encoder": f"{s.encoder.depth}x{s.encoder.width}",
        "predictor": objective.size,
        "conditioning": s.predictor.conditioning if objective.predicts else "",
        "parameters": c.encoder_parameters + c.predictor_parameters,
        "train_flops": c.train_flops,
    }


def _print_all(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Recipes", box=None, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    family = ""
    for row in rows:
        name = row["recipe"]
        before, family = family, next((known for known in recipe_book.FAMILIES if name.startswith(f"{known}-")), "")
        if family != before:
            table.add_row()
        size = f"{row['image_size']}/{row['patch_size']}"
        weights, flops = f"{row['parameters'] / 1e6:.3g} M", f"{row['train_flops'] / 1e9:.3g}"
        table.add_row(name, size, row["encoder"], row["predictor"], row["conditioning"], weights, flops)
    console.print(table)
    console.print(
        "The first group are image world models; the others are there to be compared with them (docs/families.md). "
        "px: side of the images and of a patch, pixels. encoder, predictor: blocks x width. action: how the predictor "
        "is told of it (the setting predictor.conditioning). weights: of both. "
        "GFLOPs: a training step, for one image. Below ImageNet's size image world models and ijepa-* are trained by "
        "Muon, the others by AdamW.\n"
        "All settings of one: iwm recipes RECIPE\n"
        "Start one:           iwm pretrain RECIPE --data.source S --out RUN"
    )


# ---- one -----------------------------------------------------------------------------------------------------------


def settings_of(name: str) -> list[dict[str, Any]]:
    """All settings of a recipe: {"setting", "value", "paper", "differs", "option", "sentence"}; "paper" is None where
    it has none, as of speed and folders.

    Raises UserError for an unknown name.
    """
    ours = fields.flatten(fields.to_dict(recipe_book.get(name)))
    papers = ours if name in OF_PAPER else fields.flatten(fields.to_dict(recipe_book.get(OF_PAPER[0])))
    rows = []
    for option in options(config.Config):
        if option.flags:
            value = ours[option.name]
            paper = None if option.name.startswith(NO_PAPERS) else papers[option.name]
            differs = paper is not None and value != paper
            text = {"option": option.flags[0], "sentence": option.sentence}
            rows.append({"setting": option.name, "value": value, "paper": paper, "differs": differs, **text})
    return rows


def _print_settings(name: str, rows: list[dict[str, Any]]) -> None:
    """What a recipe is, then every setting, marked where it differs from the paper's, and below it what it does."""
    console.print(f"{name}: {_words_of(name)}".rstrip(": ") + "\n")
    group = ""
    for row in rows:
        before, group = group, row["setting"].split(".")[0]
        if before not in ("", group):
            console.print()
        mark, paper = ("*", f"   (paper: {_cell(row['paper'])})") if row["differs"] else (" ", "")
        line = f"{mark} {row['setting']:<27} {_cell(row['value'])}{paper}"
        console.print(Text(line, "bold" if row["differs"] else ""), soft_wrap=True)
        console.print(Padding(Text(row["sentence"], "dim"), (0, 0, 0, 4)))
    count = sum(row["differs"] for row in rows)
    says = f"{count} settings, marked *, differ from the paper's for ImageNet with ViT-B/16 ({OF_PAPER[0]})."
    console.print("\n" + ("These are the paper's own." if name in OF_PAPER else says))
    console.print(f"Change one: iwm pretrain {name} --data.source S --out RUN --optim.epochs 20", soft_wrap=True)


def _words_of(name: str) -> str:
    """The docstring of a recipe that is a function of its own; nothing of a lambda or partial."""
    maker = recipe_book.RECIPES.get(name)
    named = getattr(maker, "__name__", "<lambda>") != "<lambda>"
    return " ".join((maker.__doc__ or "").split()) if named else ""


def _cell(value: Any) -> str:
    return typed(value) or "-"
