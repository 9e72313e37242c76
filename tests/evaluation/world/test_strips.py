"""The strips tell the truth about what is nearest."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from oracle import SIZE, SPACE, Oracle, photo
from torch import Tensor

from iwm import config
from iwm.actions import action_space
from iwm.actions.action_space import ActionSpace
from iwm.evaluation.world import strips
from iwm.model.world_model import Tokens
from iwm.runtime import drawing
from iwm.runtime.errors import UserError

BANK = 16


def asked(images: Tensor, wrong: bool = False) -> list[strips.StripRow]:
    return strips.strip_rows(Oracle(images[:1].float() / 255, wrong), images, seed=3, bank=BANK)


def frames(figure: Figure) -> list[str]:
    """Colours of the frames around the nearest images, in order."""
    framed = [axes for axes in figure.axes if axes.spines["left"].get_visible()]
    return [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in framed]


def test_an_oracle_is_framed_as_right() -> None:
    rows = asked(photo())
    assert [row.action.rsplit(", ")[-1] for row in rows[1:]] == ["undo grayscale", "undo blur", "undo solarize"]
    for row in rows:
        assert row.rank == 1
        assert row.bank == BANK
        torch.testing.assert_close(row.nearest, row.truth)
        assert not torch.allclose(row.source, row.truth)
    assert frames(strips.strips(rows)) == [drawing.GREEN] * len(rows)


def test_a_wrong_model_is_framed_as_wrong() -> None:
    rows = asked(photo(), wrong=True)
    assert all(row.rank > 1 and not torch.allclose(row.nearest, row.truth) for row in rows)
    assert frames(strips.strips(rows)) == [drawing.ORANGE] * len(rows)


def test_a_tie_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(self: Oracle, images: Tensor) -> Tokens:
        return Tokens(torch.zeros(len(images), 4, 3), (2, 2))

    monkeypatch.setattr(Oracle, "target", constant)
    monkeypatch.setattr(Oracle, "predict", lambda self, tokens, action: constant(self, tokens.values))
    rows = asked(photo())
    assert [row.rank for row in rows] == [1 + (BANK - 1) / 2] * len(rows)
    assert not any(row.right for row in rows)


def test_strips_ask_the_bank_that_is_ranked() -> None:
    image = photo()[0]
    row = asked(image[None])[0]
    reference = action_space.reference_space(SPACE, SIZE)
    parameters = reference.sample_bank(3, 0, BANK)
    entries = reference.apply((image[None].float() / 255).expand(BANK, -1, -1, -1), parameters)
    actions = SPACE.difference(SPACE.neutral(BANK), parameters)
    place = [torch.equal(entry, row.truth) for entry in entries].index(True)
    assert row.action == SPACE.describe(actions[place])


def test_a_space_without_destruction_has_nothing_to_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    gentle = ActionSpace.from_config(config.Actions(level="jitter"), SIZE)
    oracle = Oracle(photo().float() / 255)
    monkeypatch.setattr(oracle, "space", gentle)
    rows = strips.strip_rows(oracle, photo(2), seed=0, bank=BANK)
    assert len(rows) == 2


def test_no_strips_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one image"):
        strips.strips([])
