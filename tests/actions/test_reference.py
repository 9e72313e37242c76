"""The ruler of a model is that of its set, whatever it was trained on and whatever was registered since."""

import dataclasses

import pytest
import torch

from iwm import config
from iwm.actions import action_sets
from iwm.actions.action_space import ActionSpace
from iwm.actions.reference import bank_ranges, in_reference_units, reference_actions, reference_space, wider_space
from iwm.actions.transformation import Transformation

NARROW = config.Actions(brightness=0.1, contrast=0.0)


@pytest.fixture
def registered(monkeypatch):
    """A transformation of the user's that joins every space from here on."""
    monkeypatch.setattr(action_sets, "REGISTERED", {})

    def register() -> Transformation:
        shift = Transformation(
            name="shift", apply=lambda x, value: (x + value[:, None, None, None]).clamp(0, 1), graded=True, both=True,
            low=-0.3, high=0.3, neutral=0.0, probability=0.7, group="jitter",
        )  # fmt: skip
        return action_sets.register(shift)

    return register


def test_the_reference_is_the_sets_own_whatever_the_training() -> None:
    reference = ActionSpace.from_config(reference_actions("photometric"), 16)
    for actions in (NARROW, config.Actions(level="strong", jitter_order="random"), config.Actions()):
        space = reference_space(ActionSpace.from_config(actions, 16), 16)
        assert bank_ranges(space) == bank_ranges(reference)
        assert not space.random_order
        assert [t.probability for t in space.transformations] == [t.probability for t in reference.transformations]


def test_what_is_registered_later_changes_no_ruler(registered) -> None:
    """Or the same run, measured twice in a session, would have two results under one name."""
    before = ActionSpace.from_config(config.Actions(level="strong"), 16)
    reference = reference_space(before, 16)
    registered()
    assert reference_space(before, 16).spec() == reference.spec()
    after = ActionSpace.from_config(config.Actions(level="strong"), 16)
    assert bank_ranges(reference_space(after, 16)) == [*bank_ranges(reference), ("shift", -0.3, 0.3)]


def test_settings_of_every_set_reach_what_is_registered(registered) -> None:
    registered()
    still = ActionSpace.from_config(config.Actions(level="jitter", jitter_probability=0.0), 16)
    assert {t.name: t.probability for t in still.transformations if t.probability} == {}
    often = ActionSpace.from_config(config.Actions(jitter_probability=0.5), 16)
    assert often.transformations[-1].probability == 0.5


def test_units_are_shares_of_the_references_ranges() -> None:
    space = ActionSpace.from_config(NARROW, 16)
    units = in_reference_units(space, 16)
    whole = reference_space(space, 16).transformations[0]
    assert units[0] == pytest.approx(space.transformations[0].range / whole.range)
    assert units[1] == 0
    assert torch.equal(units[4:], torch.ones(3))


def test_the_wider_space_has_the_larger_of_both_ranges() -> None:
    narrow, strong = (ActionSpace.from_config(actions, 16) for actions in (NARROW, config.Actions(level="strong")))
    reference = reference_space(narrow, 16)
    assert bank_ranges(wider_space(narrow, 16)) == bank_ranges(reference)
    assert bank_ranges(wider_space(strong, 16)) == bank_ranges(dataclasses.replace(strong))
    assert bank_ranges(strong) != bank_ranges(reference)
