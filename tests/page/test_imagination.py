"""What the page shows is what `iwm imagine` measures, and an oracle imagines the truth."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import REVERSIBLE, SPACE, Oracle, SeeingOracle, muted, photo
from PIL import Image
from planted_page import tiny_world

from iwm.evaluation.world.imagine import rank_truths
from iwm.model.world_model import Tokens
from iwm.page.imagination import Bank, Banks, answer
from iwm.page.sliders import read_action


def full(model, image: torch.Tensor, size: int, seed: int = 0) -> Bank:
    bank = Bank.of(model, image, size, seed)
    while bank.ready < size - 1:
        bank.grow(model, 5)
    return bank


def pixels(uri: str) -> torch.Tensor:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_rank_and_nearest_are_those_of_the_command() -> None:
    model, image = tiny_world(), torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    for changes in ({"brightness": 0.3}, {"hue": -0.05, "grayscale": 1.0}, {}):
        action = read_action(model.space, changes)
        shown = answer(model, full(model, image, 24, seed=3), action)
        (row,) = rank_truths(model, image[None], action[None], 24, seed=3)
        assert (shown["rank"], shown["ranked"], shown["bank"]) == (row.rank, row.bank, 24)
        assert shown["words"] == row.action
        for key, value in row.decibels.items():
            assert shown[key] == pytest.approx(value, abs=1e-3)
        for name in ("source", "truth", "nearest", "imagined", "decoded"):
            expected = getattr(row, name).clamp(0, 1).mul(255).round()
            assert (pixels(shown["pictures"][name]).float() - expected).abs().max() <= 1, name


def test_an_oracle_is_right_everywhere() -> None:
    model = SeeingOracle(space=REVERSIBLE)
    bank = full(model, muted()[0], 12)
    shown = answer(model, bank, read_action(REVERSIBLE, {"light": 0.08, "negative": 1}))
    assert (shown["rank"], shown["nearest_is_truth"]) == (1, True)
    assert shown["missed"] == pytest.approx(0, abs=1e-6)
    assert shown["explained"] == pytest.approx(1, abs=1e-4)
    assert shown["psnr_prediction"] == pytest.approx(shown["psnr_truth"])
    assert pixels(shown["pictures"]["map"]).sum() < 20 * 32 * 32, "black"
    negative = 255 - muted()[0].int()
    assert (pixels(shown["pictures"]["source"]).int() - negative).abs().max() <= 1, "to be undone it must be seen"


def test_a_wrong_world_shows_where() -> None:
    model = Oracle(wrong=True)
    shown = answer(model, full(model, photo()[0], 12), read_action(SPACE, {"brightness": 0.4}))
    assert shown["rank"] > 1
    assert not shown["nearest_is_truth"]
    assert shown["explained"] < 0
    assert shown["missed"] > 0.1
    assert "imagined" not in shown["pictures"], "no decoder, no picture"


def test_of_a_collapsed_space_the_truth_ties_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Oracle()
    constant = Tokens(torch.full((1, 32 * 32, 3), 0.3), model.grid)
    monkeypatch.setattr(
        model, "target", lambda images: replace(constant, values=constant.values.repeat(len(images), 1, 1))
    )
    shown = answer(model, full(model, photo()[0], 101), read_action(SPACE, {"brightness": 0.4}))
    assert shown["rank"] == 51, "the middle, ties counted half"


def test_no_change_explains_nothing() -> None:
    assert answer(Oracle(), full(Oracle(), photo()[0], 12), read_action(SPACE, {}))["explained"] is None


def test_the_first_answer_waits_for_few_versions_and_the_rest_follow() -> None:
    banks = Banks(Oracle(), size=30, seed=0)
    bank = banks.of("f0", photo()[0])
    assert 0 < bank.ready < 29
    assert answer(Oracle(), bank, read_action(SPACE, {"hue": 0.1}))["ranked"] == bank.ready + 1
    while banks.grow_one():
        pass
    assert bank.complete
    assert banks.of("f0", photo()[0]) is bank, "not encoded again"


def test_versions_do_not_depend_on_how_many_are_encoded_at_a_time() -> None:
    model = tiny_world()
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    one, other = full(model, image, 24), Bank.of(model, image, 24, 0)
    other.grow(model, 23)
    assert one.targets is not None
    assert other.targets is not None
    assert torch.allclose(one.targets.float(), other.targets.float(), atol=2e-3)
    assert one.spread == pytest.approx(other.spread, rel=1e-2)


def test_old_banks_are_forgotten() -> None:
    model = tiny_world()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    size = full(model, images[0], 24).bytes
    banks = Banks(model, 24, 0, most_bytes=2 * size)
    for number, image in enumerate(images):
        banks.of(f"f{number}", image)
    assert list(banks._kept) == ["f2", "f3"]
