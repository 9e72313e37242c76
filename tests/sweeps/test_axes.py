"""The cells of a sweep and their order."""

from dataclasses import replace

import pytest
from conftest import tiny

from iwm import config, recipe_book
from iwm.model.conditioning import CONDITIONINGS
from iwm.runtime.errors import UserError
from iwm.sweeps import axes
from iwm.verbs.sweep import Axes


def test_other_recipes_are_a_cell_each():
    others = [replace(tiny(actions=config.Actions(level="strong")), recipe="mae-demo")]
    made = axes.cells_of(replace(tiny(), recipe="demo"), Axes(predictors="2x32,4x32"), others)
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
    full = axes.cells_of(tiny(), Axes(design="full"))
    assert len({cell.name for cell in full}) == len(full) == 4 * 3 * 2
    assert {cell.predictor for cell in full} == {"2x32", "1x32"}


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("moco-demo", (None, None, None)),
        ("byol-demo", (None, None, None)),
        ("ijepa-demo", ("none", None, "4x128")),
        ("mae-demo", ("none", None, "4x128")),
        ("pixel-world-demo", ("adaln", "destructive", "4x128")),
        ("demo", ("adaln", "destructive", "4x128")),
    ],
)
def test_a_cell_tells_only_what_there_is(recipe, told):
    cell = axes.Cell(recipe, recipe_book.get(recipe))
    assert (cell.conditioning, cell.difficulty, cell.predictor) == told


def test_a_joint_embedding_has_no_predictor_to_vary():
    with pytest.raises(UserError, match=r"moco-demo is a joint embedding .* --recipes moco-demo"):
        axes.cells_of(recipe_book.get("moco-demo"), Axes())


def test_by_default_a_sweep_has_the_levels_of_its_set():
    own = tiny(actions=config.Actions(set="camera"))
    assert {cell.settings.actions.level for cell in axes.cells_of(own, Axes())} == {"jitter", "destructive"}
    assert {cell.settings.actions.level for cell in axes.cells_of(tiny(), Axes())} == {
        "jitter",
        "destructive",
        "strong",
    }


def test_by_default_a_sweep_has_every_conditioning_that_is_known(monkeypatch):
    base = recipe_book.get("cifar10")
    assert {cell.settings.predictor.conditioning for cell in axes.cells_of(base, Axes())} == set(CONDITIONINGS)
    monkeypatch.setitem(CONDITIONINGS, "mine", CONDITIONINGS["none"])
    assert "mine" in {cell.settings.predictor.conditioning for cell in axes.cells_of(base, Axes())}


def test_the_weight_of_the_invariance_term_is_an_axis():
    made = axes.cells_of(
        tiny(), Axes(conditionings="adaln", levels="destructive", predictors="2x32", invariance="3,0,1")
    )
    names = [cell.name for cell in made]
    assert names == [f"adaln-destructive-2x32{end}" for end in ("", "-inv1", "-inv3")]
    assert [cell.invariance for cell in made] == [0, 1, 3]
    assert axes.cells_of(tiny(), Axes())[0].invariance == 0
    assert axes.Cell("moco-demo", recipe_book.get("moco-demo")).invariance is None
    both = axes.cells_of(tiny(), Axes(conditionings="adaln,none", predictors="2x32", invariance="0,1"))
    assert len(both) == 3 + 1 + 1, "in the design tables the weights are varied at the reference only"
    assert len(axes.cells_of(tiny(), Axes(invariance="0,1", design="full"))) == 4 * 3 * 2 * 2


@pytest.mark.parametrize("word", ["much", "-1", "nan", "inf"])
def test_a_weight_is_a_number_from_0_up(word):
    with pytest.raises(UserError, match=rf"--invariance {word} is no weight"):
        axes.cells_of(tiny(), Axes(invariance=f"0,{word}"))


def test_two_cells_of_one_name_are_refused():
    base = replace(tiny(), recipe="demo")
    with pytest.raises(UserError, match=r"are called adaln-.*-inv0\.123457 .* weight 0\.12345678, and .* 0\.12345679;"):
        axes.cells_of(base, Axes(invariance="0,0.12345678,0.12345679"))
    others = [replace(base, recipe="mine!"), replace(base, recipe="mine?")]
    with pytest.raises(UserError, match=r"called mine .* recipe mine! with .*, and recipe mine\? with"):
        axes.cells_of(base, Axes(), others)
    with pytest.raises(UserError, match=r"called adaln-destructive-2x32 .* demo .* recipe adaln-destructive-2x32"):
        axes.cells_of(base, Axes(), [replace(base, recipe="adaln-destructive-2x32")])
