"""A typed action: read, refused where no image can be that, and said where training drew nothing like it."""

import dataclasses

import pytest
import torch
from oracle import SPACE

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.action_text import parse_action
from iwm.runtime.errors import UserError

CAMERA = ActionSpace.from_config(config.Actions(set="camera"), 32)
STILL = ActionSpace.from_config(config.Actions(hue=0.0, grayscale=0.0), 32)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("brightnes=0.3", "did you mean 'brightness'"),
        ("rotate=90", "'rotate': known are: brightness, contrast"),
        ("brightness", "'brightness' is no change; give NAME=NUMBER"),
        ("brightness=much", "'much'; give a number"),
        ("hue=0.1,hue=0.2", "twice"),
        ("grayscale=0.5", "it is a flag"),
        ("hue=nan", "finite"),
        ("brightness=-5", "a factor of 1 cannot fall below 0; give -1 or more"),
        ("hue=0.1,contrast=-1.01", "'contrast' is -1.01"),
    ],
)
def test_an_action_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_action(text, SPACE)


def test_what_was_never_a_change_in_training_is_refused_rather_than_dropped() -> None:
    with pytest.raises(UserError, match="trained without changes of hue; leave 'hue' out"):
        parse_action("hue=0.1", STILL)
    assert parse_action("hue=0", STILL).tolist() == [0.0] * STILL.dim


@pytest.mark.parametrize(
    ("text", "space", "said"),
    [
        ("brightness=0.8", SPACE, ""),
        ("brightness=-0.8,hue=0.2", SPACE, ""),
        ("brightness=0.81", SPACE, "changes of brightness from -0.8 to 0.8; 0.81 lies outside"),
        ("hue=5", SPACE, "changes of hue from -0.2 to 0.2; 5 lies outside"),
        ("brightness=-1", SPACE, "-1 lies outside"),
        ("noise=-0.1", CAMERA, ""),
        ("noise=0.1", CAMERA, "changes of noise from -0.1 to 0; 0.1 lies outside"),
        ("grayscale=1", SPACE, ""),
        ("grayscale=1", STILL, "Training never drew grayscale"),
    ],
)
def test_what_training_never_drew_is_said(text, space, said, capsys) -> None:
    parse_action(text, space)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in " ".join(printed.err.split())
    assert bool(printed.err) is bool(said)


def test_a_range_below_zero_is_what_its_own_space_says() -> None:
    (fade,) = (t for t in SPACE.transformations if t.name == "brightness")
    space = ActionSpace((dataclasses.replace(fade, low=-2.0, high=2.0),))
    assert space.reach(parse_action("brightness=-2", space)[None]).values.item() == pytest.approx(-1.0)
    with pytest.raises(UserError, match="cannot fall below -2; give -3 or more"):
        parse_action("brightness=-3.5", space)


def test_python_callers_are_warned_too(trained) -> None:
    import iwm

    world = iwm.load(trained)
    with pytest.warns(UserWarning, match="changes of brightness from -0.8 to 0.8; 1.5 lies outside"):
        assert torch.isclose(world.action(brightness=1.5)[0], torch.tensor(1.5 / 0.8))
    with pytest.raises(UserError, match="give -1 or more"):
        world.action(brightness=-1.5)
