"""The table of recipes names all of them, with numbers that are computed."""

import pytest

from iwm import cli, config, recipe_book
from iwm.cli import recipe_table
from iwm.model.cost import cost
from iwm.runtime.errors import UserError
from iwm.runtime.options import options
from iwm.verbs.recipes import Recipes


def test_every_recipe_is_a_row_with_its_size(monkeypatch, capsys):
    monkeypatch.setattr(recipe_table.console, "width", 80)
    recipe_table.show(Recipes())
    text = capsys.readouterr().out
    assert "…" not in text, "a column is cut off in a terminal of 80 columns"
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert set(recipe_book.RECIPES) <= set(rows)
    size = cost(recipe_book.get("cifar10"))
    assert f"{(size.encoder_parameters + size.predictor_parameters) / 1e6:.3g} M" in rows["cifar10"]
    assert "MLP" in rows["moco-demo"]


def test_one_recipe_shows_every_setting_and_where_it_differs_from_the_paper(capsys):
    assert cli.main(["recipes", "cifar10"]) == 0
    text = capsys.readouterr().out
    for option in options(config.Config):
        if option.flags:
            assert f" {option.name} " in text, option.name
            assert option.sentence[:40] in text, option.name
    assert "* data.image_size             32   (paper: 224)" in text
    assert "  data.flip                   0.5\n" in text


def test_differences_are_the_methods_alone():
    differing = {row["setting"]: row for row in recipe_table.settings_of("demo") if row["differs"]}
    assert differing["optim.kind"]["paper"] == "adamw"
    assert not any(name.startswith(("run.", "speed.", "data.source")) for name in differing)
    for name in recipe_table.OF_PAPER:
        assert not any(row["differs"] for row in recipe_table.settings_of(name))
    for row in recipe_table.settings_of("mae-cifar10"):
        assert row["option"].startswith("--")


def test_an_unknown_recipe_is_named():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        recipe_table.show(Recipes(name="cifar"))
