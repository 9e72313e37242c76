"""The change between two images is said by the model and by pixels, beside the truth where the page knows it."""

import pytest
from oracle import REVERSIBLE, Oracle, muted
from planted_page import tiny_world

from iwm.actions.pixel_search import reach_with_flags
from iwm.page.change import compare
from iwm.page.pictures import Picture

CHANGE = {"light": 0.06, "warmth": -0.04}


def pair() -> tuple[Picture, Picture]:
    source = muted()
    parameters = reach_with_flags(REVERSIBLE, REVERSIBLE.encode(**CHANGE)[None])
    target = (REVERSIBLE.apply(source.float() / 255, parameters) * 255).round().byte()
    return Picture(source[0]), Picture(target[0], change=CHANGE, of="f0")


def test_both_ways_find_what_an_exact_world_did() -> None:
    source, target = pair()
    found = compare(Oracle(space=REVERSIBLE), source, target, "f0", undo=False)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == list(REVERSIBLE.names)
    for name, value in CHANGE.items():
        assert rows[name]["predictor"] == pytest.approx(value, abs=0.01)
        assert rows[name]["pixels"] == pytest.approx(value, abs=0.01)
        assert rows[name]["truth"] == value
    assert found["residual"] < 0.1 * found["null_residual"]
    for result in found["results"].values():
        assert result["psnr"] > found["unchanged"] + 10
        assert result["picture"].startswith("data:image/png")


def test_the_truth_is_not_known_of_another_pair() -> None:
    source, target = pair()
    found = compare(tiny_world(), Picture(source.pixels[:, :16, :16]), Picture(target.pixels[:, :16, :16]), "f1", False)
    assert {row["truth"] for row in found["rows"]} == {None}
