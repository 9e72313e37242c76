"""The change between two images is found, exactly where the world model is exact."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny
from oracle import REVERSIBLE, Oracle, muted

from iwm import config
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.actions.transformation import Transformation
from iwm.model.action_search import Search, bounds, flag_choices
from iwm.model.vit import AdaLNBlock
from iwm.model.world_model import ImageWorldModel


def spoilt(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources, targets and the true actions: light and warmth differ, some sources are negative, some mirrored."""
    clean = muted(count).float()[..., ::4, ::4] / 255
    values = torch.linspace(-0.1, 0.1, count)
    on = torch.tensor([[True, True, i % 2 == 1, i % 3 == 2] for i in range(count)])
    source = Parameters(torch.where(on, torch.stack([values, -values / 2, *torch.ones(2, count)], 1), 0), on)
    target = Parameters(
        torch.stack([-values / 3, values, *torch.zeros(2, count)], 1), on & torch.tensor([1, 1, 0, 0]).bool()
    )
    return REVERSIBLE.apply(clean, source), REVERSIBLE.apply(clean, target), REVERSIBLE.difference(source, target)


def test_an_oracles_actions_are_found_with_what_is_to_be_undone() -> None:
    source, target, truth = spoilt(6)
    found = Oracle(space=REVERSIBLE, size=8).infer_action(source, target)
    torch.testing.assert_close(found, truth, atol=0.01, rtol=0)


def test_flags_stay_off_where_nothing_may_be_undone() -> None:
    source, target, truth = spoilt(6)
    found = Oracle(space=REVERSIBLE, size=8).infer_action(source, target, Search(undo=False))
    assert not found[:, 2:].any()
    torch.testing.assert_close(found[0], truth[0], atol=0.01, rtol=0)


GRADED = ActionSpace(
    (
        REVERSIBLE.transformations[0],
        Transformation(
            name="fog", apply=lambda x, value: x + value[:, None, None, None], graded=True, both=False,
            low=0.0, high=0.2, neutral=0.0, probability=0.5,
        ),
        replace(REVERSIBLE.transformations[2], both=True),
    ),
    set="graded",
)  # fmt: skip
"""Light on both views, fog on the source only, both by degrees; a negative of either view."""


def test_what_only_a_source_carries_is_undone_and_never_added() -> None:
    """Light and fog cannot be told apart here, but fog is never added to a target."""
    low, high = bounds(GRADED)
    assert (low.tolist(), high.tolist()) == ([-1, -1, 0], [1, 0, 0])
    assert bounds(GRADED, undo=False)[0].tolist() == [-1, 0, 0]
    clean = muted(3).float()[..., ::4, ::4] / 255
    found = Oracle(space=GRADED, size=8).infer_action(clean, clean + 0.3)
    assert found[:, 1].max() <= 0
    assert found[:, 0].min() == 1
    unused = replace(GRADED, transformations=tuple(replace(t, probability=0.0) for t in GRADED.transformations))
    assert not bounds(unused)[0][1], "what no source ever carried was not learned"


def test_a_flag_of_both_views_is_found_in_both_directions() -> None:
    clean = muted(2).float()[..., ::4, ::4] / 255
    found = Oracle(space=GRADED, size=8).infer_action(clean, 1 - clean, Search(undo=False))
    assert found[:, 2].abs().tolist() == [1, 1]
    assert flag_choices(GRADED)[:, 2].tolist() == [0, 1, -1]
    assert flag_choices(REVERSIBLE, undo=False).tolist() == [[0, 0, 0, 0]]


def test_a_wrong_world_gives_wrong_actions() -> None:
    source, target, truth = spoilt(4)
    found = Oracle(space=REVERSIBLE, size=8, wrong=True).infer_action(source, target)
    assert (found - truth).abs().max() > 0.3


def test_answers_do_not_depend_on_the_batch() -> None:
    source, target, _ = spoilt(5)
    oracle = Oracle(space=REVERSIBLE, size=8)
    together = oracle.infer_action(source, target)
    torch.testing.assert_close(together[3:4], oracle.infer_action(source[3:4], target[3:4]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("conditioning", ["none", "sequence", "feature", "adaln"])
def test_any_predictor_can_be_searched(conditioning: Any, images: torch.Tensor) -> None:
    predictor = config.Predictor(depth=2, width=32, conditioning=conditioning, init="xavier")
    model = ImageWorldModel(tiny(predictor=predictor)).eval().requires_grad_(False)
    model.predictor.open_gates()
    for block in model.predictor.blocks:
        if isinstance(block, AdaLNBlock):
            torch.nn.init.normal_(block.modulation.weight, std=0.02)  # untrained it is told nothing
    found = model.infer_action(images[:2], images[2:4], Search(steps=2, undo=False))
    assert found.shape == (2, 7)
    assert not found.requires_grad
    assert bool(found[:, :4].any()) == (conditioning != "none")
