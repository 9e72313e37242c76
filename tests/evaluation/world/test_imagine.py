"""An oracle imagines the truth; what cannot be asked is refused in a sentence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import REVERSIBLE, SPACE, Oracle, muted, photo
from PIL import Image

from iwm import config, verbs
from iwm.actions.action_space import ActionSpace
from iwm.actions.action_text import parse_action
from iwm.actions.transformation import Transformation
from iwm.evaluation.world import imagine
from iwm.runtime.errors import UserError
from iwm.verbs.imagine import Imagine

BANK = 12


@pytest.mark.parametrize("text", ["brightness=0.3,hue=-0.05", "saturation=-0.1", "grayscale=1", "solarize=1"])
def test_the_truth_is_nearest_to_an_oracles_prediction(text: str) -> None:
    image = photo(2)[1:]
    action = parse_action(text, SPACE)[None]
    (row,) = imagine.rank_truths(Oracle(image.float() / 255), image, action, BANK, candidates=photo(2))
    assert row.right
    assert row.bank == 2 * BANK
    clean = image[0].float() / 255
    assert torch.allclose(row.source, clean) != (text[-2:] == "=1"), "to be undone it must be there"
    assert torch.allclose(row.truth, clean) == (text[-2:] == "=1")


def test_a_flag_that_a_target_may_carry_is_added_to_it() -> None:
    mirror = Transformation(
        name="mirror", apply=lambda x, _: x.flip(-1), graded=False, both=True,
        low=1.0, high=1.0, neutral=0.0, probability=0.2,
    )  # fmt: skip
    space, image = dataclasses.replace(SPACE, transformations=(*SPACE.transformations, mirror), set="mine"), photo()
    assert not imagine.source_to_undo(space, space.encode(mirror=-1)).applied.any()
    (row,) = imagine.rank_truths(Oracle(space=space), image, space.encode(mirror=-1)[None], BANK)
    torch.testing.assert_close(row.truth, image[0].flip(-1).float() / 255)


def test_a_wrong_world_is_not_right() -> None:
    action = SPACE.encode(brightness=0.4)[None]
    (row,) = imagine.rank_truths(Oracle(wrong=True), photo(), action, BANK)
    assert row.rank > 1


def test_a_sweep_reaches_both_ends_and_every_truth_is_nearest() -> None:
    changes = imagine.sweep_changes(SPACE, "hue")
    assert changes == pytest.approx(torch.linspace(-0.1, 0.1, imagine.VALUES).tolist())
    actions = torch.stack([SPACE.encode(hue=change) for change in changes])
    rows = imagine.rank_truths(Oracle(), photo(), actions, BANK)
    assert [row.rank for row in rows] == [1] * len(changes)
    assert not torch.allclose(rows[0].truth, rows[-1].truth)


def test_candidates_join_the_bank_as_their_own_images() -> None:
    """A bank of other pictures only would be too easy: the image's own versions stay in it."""
    rows = imagine.rank_truths(Oracle(), photo(3)[:1], SPACE.encode(brightness=0.1)[None], 4, candidates=photo(3)[1:])
    assert rows[0].bank == 8


@pytest.mark.parametrize(("name", "said"), [("hues", "did you mean 'hue'"), ("blur", "sweep one of brightness")])
def test_a_sweep_that_is_none_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        imagine.sweep_changes(SPACE, name)


def test_what_was_not_trained_with_is_not_swept() -> None:
    still = config.Actions(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    space = ActionSpace.from_config(still, 32)
    with pytest.raises(UserError, match="trained without changes of hue"):
        imagine.sweep_changes(space, "hue")
    with pytest.raises(UserError, match="no range to sweep on a target; give --action grayscale=1"):
        imagine.sweep_changes(space, "grayscale")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture on disk; every RUN is an oracle."""
    monkeypatch.setattr(imagine, "open_world", lambda run, session: Oracle(space=REVERSIBLE, size=16))
    path = tmp_path / "tree.png"
    Image.fromarray(muted()[0].permute(1, 2, 0).numpy()).save(path)
    return str(path)


@pytest.mark.parametrize("asked", [{"action": "light=0.05,mirror=1"}, {"sweep": "warmth"}])
def test_the_result_lies_in_the_run_with_its_picture(file: str, tmp_path: Path, asked: dict[str, Any]) -> None:
    speed = config.Speed(precision="fp32")
    found = imagine.imagine(Imagine(run="run", image=file, bank=BANK, out=str(tmp_path), speed=speed, **asked))
    written = json.loads(Path(found["path"]).read_text())
    assert written["rank"] == 1
    assert written["data"] == "tree"
    assert Path(found["path"]).with_suffix(".png").stat().st_size > 5_000


def test_what_asks_nothing_is_refused(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "Give --action"),
        ({"action": "light=0.1", "sweep": "light"}, "not both"),
    ]
    for more, said in cases:
        with pytest.raises(UserError, match=said):
            verbs.call("imagine", run=str(run), image=file, **more)
    with pytest.raises(UserError, match="absent"):
        verbs.call("imagine", run=str(run), image=str(tmp_path / "absent.png"), action="light=0.1")
    Path(file).with_name("second.png").write_bytes(Path(file).read_bytes())
    with pytest.raises(UserError, match="2 images; give one"):
        verbs.call("imagine", run=str(run), image=str(tmp_path), action="light=0.1")


def test_an_encoder_alone_imagines_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a predictor"):
        verbs.call("imagine", run="timm:vit_tiny_patch16_224", image=str(tmp_path), action="light=0.1")
