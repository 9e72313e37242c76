"""The strips tell the truth about what is nearest."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from oracle import SIZE, SPACE, Oracle, SeeingOracle, photo
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import reference_space
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
    reference = reference_space(SPACE, SIZE)
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


def test_with_a_decoder_the_imagined_picture_and_the_decoders_limit_are_shown() -> None:
    """A wrong oracle imagines another picture than the truth; both are decoded without error."""
    for wrong in (False, True):
        rows = strips.strip_rows(SeeingOracle(photo().float() / 255, wrong), photo(), seed=3, bank=BANK)
        for row in rows:
            assert row.imagined is not None
            torch.testing.assert_close(row.decoded, row.truth, atol=1e-6, rtol=0)
            assert torch.allclose(row.imagined, row.truth, atol=1e-5) != wrong
            assert (row.decibels["psnr_prediction"] < row.decibels["psnr_truth"] - 1) == wrong
        figure = strips.strips(rows)
        assert len(figure.axes) == 5 * len(rows), "source, nearest, imagined, truth decoded, truth"
        words = [text.get_text() for text in figure.texts]
        assert f"{rows[0].decibels['psnr_prediction']:.1f} dB" in words
        assert {"imagined", "truth, decoded", strips.NOTE} <= set(words)
        assert len(strips.sweep(rows, "hue", [0.0] * len(rows)).axes) == 4 * len(rows)


def test_without_a_decoder_nothing_is_called_imagined() -> None:
    rows = asked(photo())
    assert rows[0].decibels == {}
    words = {text.get_text() for text in strips.strips(rows).texts}
    assert not {"imagined", "truth, decoded", strips.NOTE} & words
