"""Single changes of photos: seen, ranked among versions with and without being told, written beside their controls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image

from iwm.actions.action_space import ActionSpace
from iwm.actions.transformation import Transformation
from iwm.evaluation.world import changes
from iwm.evaluation.world.changes import Changes
from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.world_model import ImageWorldModel


def space() -> ActionSpace:
    return ActionSpace.from_config(tiny().actions, 16)


def test_every_change_moves_two_parameters_to_opposite_ends_and_no_two_are_alike() -> None:
    actions = changes.changes_of(space(), 12)
    graded = [place for place, t in enumerate(space().transformations) if t.graded and t.both]
    assert len({tuple(action.tolist()) for action in actions}) == 12
    for action in actions:
        moved = action[graded][action[graded] != 0]
        assert sorted(moved.tolist()) == pytest.approx([-0.5, 0.5])
        assert int((action != 0).sum()) == 2


def test_a_range_with_one_side_is_gone_half_of_the_way_where_the_other_end_is_no_change() -> None:
    fog = Transformation(
        name="fog", apply=lambda x, _: x, graded=True, both=True, low=0.0, high=2.0, neutral=0.0, probability=1.0
    )
    assert changes.changes_of(ActionSpace((fog,)), 4).flatten().tolist() == [1.0, 0.5, 1.0, 0.5]


def test_a_model_that_is_told_is_compared_with_the_same_model_untold(images: torch.Tensor) -> None:
    """A planted predictor whose prediction is the truth of what it is told."""
    torch.manual_seed(0)
    model = ImageWorldModel(tiny()).eval()
    clean = images[0][None].float() / 255

    def planted(tokens, action):
        changed = model.space.apply(clean.expand(len(action), -1, -1, -1), model.space.reach(action))
        return model.target(changed)

    model.predict = planted
    questions = changes.ask_changes(model, images[:1], ["a.jpg"], 16, 0)
    assert len(questions) == changes.SHOWN
    assert [question.told.rank for question in questions] == [1.0] * changes.SHOWN
    assert sum(question.untold.rank for question in questions) > 2 * changes.SHOWN
    assert all(question.told.bank == 16 for question in questions)


def test_several_photos_get_a_change_each_and_all_is_written(trained: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(photos / f"{name}.png")
    width = tiny().encoder.width
    decoder = PixelDecoder(torch.zeros(48, width), torch.full((48,), 0.5))
    from iwm.run_folder import decoder_file, identity

    decoder.write(decoder_file(str(trained)), identity(str(trained)))
    content = changes.imagine_changes(Changes(run=str(trained), photos=str(photos), bank=8))
    assert [row["photo"] for row in content["asked"]] == ["a.png", "b.png", "c.png"]
    assert content["rank"] == pytest.approx(sum(row["rank"] for row in content["asked"]) / 3)
    path = trained / "eval" / "imagine-changes-photos.json"
    assert json.loads(path.read_text())["rank_untold"] == content["rank_untold"]
    assert path.with_suffix(".png").is_file()
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("when the model is told no change", "a guess has 4.5", "as it is", "limit"):
        assert words in printed


def test_embedded_photos_are_the_held_out_ones() -> None:
    assert len(changes.held_out("sample", 16)) == 119


def test_long_names_fit_a_column() -> None:
    assert changes.shorten("holiday-in-rome.jpg") == "holiday-i…"
    assert changes.shorten("a.jpg") == "a.jpg"
