"""The table of recipes names all of them, with numbers that are computed."""

from iwm import recipe_book
from iwm.cli import recipe_table
from iwm.model.cost import cost
from iwm.verbs.recipes import Recipes


def test_every_recipe_is_a_row_with_its_size(monkeypatch, capsys):
    monkeypatch.setattr(recipe_table.console, "width", 120)
    recipe_table.show(Recipes())
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(recipe_book.RECIPES) <= set(rows)
    size = cost(recipe_book.get("cifar10"))
    assert f"{(size.encoder_parameters + size.predictor_parameters) / 1e6:.3g} M" in rows["cifar10"]
    assert "MLP" in rows["moco-demo"]
