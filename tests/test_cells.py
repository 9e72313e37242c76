"""The cells of a sweep and their order."""

from dataclasses import replace

from conftest import tiny

from iwm import cells, config


def test_other_recipes_are_a_cell_each():
    others = [replace(tiny(actions=config.Actions(level="strong")), recipe="mae-demo")]
    made = cells.cells_of(replace(tiny(), recipe="demo"), cells.Axes(predictors="2x32,4x32"), others)
    assert [cell.name for cell in made[:5]] == [
        "adaln-destructive-2x32",
        "none-destructive-2x32",
        "adaln-jitter-2x32",
        "adaln-destructive-4x32",
        "sequence-destructive-2x32",
    ]
    assert made[0].settings == replace(tiny(), recipe="demo")
    other = next(cell for cell in made if cell.name == "mae-demo")
    assert other.settings is others[0]
    assert len(made) == 4 + 2 + 3 + 1
    full = cells.cells_of(tiny(), cells.Axes(design="full"))
    assert len({cell.name for cell in full}) == len(full) == 4 * 3 * 2
    assert {cell.predictor for cell in full} == {"2x32", "1x32"}
