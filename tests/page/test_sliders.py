"""Every action that was trained has a slider whose whole range can be asked; nothing else can."""

from dataclasses import replace

import pytest
import torch
from oracle import REVERSIBLE, SPACE

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.pixel_search import reach_with_flags
from iwm.evaluation.world.imagine import source_to_undo
from iwm.page.sliders import parts_of, read_action, sliders_of
from iwm.runtime.errors import UserError

CAMERA = ActionSpace.from_config(config.Actions(set="camera"), 32)
ADDABLE = ActionSpace(
    tuple(replace(t, both=True) if t.name == "mirror" else t for t in REVERSIBLE.transformations), set="reversible"
)
"""A space with a flag that both views can carry."""


@pytest.mark.parametrize("space", [SPACE, CAMERA, REVERSIBLE, ADDABLE], ids=["photometric", "camera", "own", "flag"])
def test_every_action_has_a_slider_and_both_its_ends_can_be_asked(space: ActionSpace) -> None:
    sliders = sliders_of(space)
    assert [slider.name for slider in sliders] == list(space.names)
    for slider in sliders:
        assert slider.low <= 0 <= slider.high
        for value in (slider.low, slider.high):
            action = read_action(space, {slider.name: value})
            assert action.abs().max() <= 1 + 1e-6
            undone, reached = parts_of(space, action)
            source, target = source_to_undo(space, undone), reach_with_flags(space, reached)
            if value:  # the views differ by the very action that is asked
                assert torch.allclose(space.difference(source, target)[0], action, atol=1e-6), slider


def test_what_only_a_source_carries_is_undone_and_not_added() -> None:
    ranges = {slider.name: (slider.low, slider.high) for slider in sliders_of(CAMERA)}
    assert ranges["noise"] == pytest.approx((-0.1, 0))
    assert ranges["jpeg"] == (0, 90)
    assert {slider.name: slider.label for slider in sliders_of(CAMERA)}["noise"] == "undo noise"


def test_what_was_not_trained_has_no_slider() -> None:
    jitter = ActionSpace.from_config(config.Actions(level="jitter"), 32)
    assert [slider.name for slider in sliders_of(jitter)] == ["brightness", "contrast", "saturation", "hue"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"brightness": 0.5}, "outside -0.4 to 0.4"),
        ({"brightnes": 0.1}, "did you mean 'brightness'"),
        ({"hue": "red"}, "finite number"),
        ({"hue": float("nan")}, "finite number"),
        ({"hue": 10**400}, "finite number"),
        ({"grayscale": True}, "finite number"),
        ({"grayscale": 0.5}, "it is a flag"),
        ([0.1], "object of numbers"),
    ],
)
def test_what_is_no_action_is_refused_in_a_sentence(changes: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_action(SPACE, changes)


def test_steps_are_round_numbers() -> None:
    steps = {slider.name: slider.step for slider in sliders_of(SPACE)}
    assert (steps["brightness"], steps["saturation"], steps["hue"]) == (0.02, 0.01, 0.005)
