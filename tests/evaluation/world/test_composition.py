"""Two changes in a row: exact for an oracle, in every way that uses both."""

import pytest
from oracle import REVERSIBLE, Oracle, muted, photo

from iwm.evaluation.world import composition
from iwm.runtime.algebra import chance


def small(count: int):
    return muted(count)[..., ::4, ::4].contiguous()


def test_an_oracle_composes_exactly() -> None:
    found = composition.compose(Oracle(space=REVERSIBLE, size=8), small(30), small(4), bank=8)
    for way in ("sum", "reencoded", "translated", "pixels"):
        assert found["error"][way] == pytest.approx(0, abs=1e-4), way
        assert found["mrr"][way] == 1, way
    assert found["error"]["null"] == pytest.approx(1, rel=1e-4)
    assert found["error"]["first"] > 0.05
    assert found["way_back_r2"] > 0.999
    assert found["mrr_chance"] == chance(8)


def test_photometric_actions_add_up_exactly() -> None:
    """Factors multiply when one change follows another; parameters of one image, whose differences actions are, add."""
    found = composition.compose(Oracle(), photo(30), photo(3), bank=8)
    assert found["error"]["sum"] == pytest.approx(0, abs=1e-4)
    assert found["mrr"]["sum"] == 1


def test_a_wrong_world_does_not() -> None:
    found = composition.compose(Oracle(space=REVERSIBLE, size=8, wrong=True), small(30), small(4), bank=8)
    assert found["error"]["sum"] > 1
    assert found["mrr"]["sum"] < 1
