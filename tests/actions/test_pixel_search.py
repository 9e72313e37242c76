"""Known changes of pictures are found by applying them, whatever else is searched beside them."""

import torch
from oracle import SPACE, muted, photo

from iwm.actions.action_space import ActionSpace
from iwm.actions.pixel_search import PixelSearch, histograms, reach_with_flags, search_pixels
from iwm.actions.transformation import Transformation

FLAGGED = ActionSpace(
    (
        Transformation(
            name="light", apply=lambda x, value: x + value[:, None, None, None], graded=True, both=True,
            low=-0.1, high=0.1, neutral=0.0, probability=1.0,
        ),
        Transformation(
            name="mirror", apply=lambda x, value: x.flip(-1), graded=False, both=True,
            low=1.0, high=1.0, neutral=0.0, probability=0.2,
        ),
        Transformation(
            name="negative", apply=lambda x, value: 1 - x, graded=False, both=False,
            low=1.0, high=1.0, neutral=0.0, probability=0.2,
        ),
    ),
    set="flagged",
)  # fmt: skip


def jittered(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, each with an entry of its bank and the action between them."""
    clean = photo(count)[..., ::2, ::2].float() / 255
    parameters = SPACE.sample_bank(3, 0, count)
    return clean, SPACE.apply(clean, parameters), SPACE.difference(SPACE.neutral(count), parameters)


def test_jitter_is_found_to_a_hundredth_of_its_range() -> None:
    source, target, action = jittered(6)
    error = (search_pixels(SPACE, source, target) - action).abs()
    assert float(error.mean()) < 0.01
    assert float((search_pixels(SPACE, source, target, PixelSearch(rounds=1)) - action).abs().mean()) > 0.02


def test_an_answer_depends_on_its_own_pair_alone() -> None:
    source, target, _ = jittered(3)
    together = search_pixels(SPACE, source, target)
    torch.testing.assert_close(search_pixels(SPACE, source[1:2], target[1:2]), together[1:2], atol=1e-4, rtol=0)
    assert not torch.equal(search_pixels(SPACE, source, target, PixelSearch(seed=1)), together)


def test_flags_that_a_target_carries_are_found_and_what_only_a_source_carries_is_left() -> None:
    source = muted(3).float() / 255
    action = torch.tensor([[0.4, -1.0, 0.0], [-0.5, 0.0, 0.0], [0.0, -1.0, 0.0]])
    target = FLAGGED.apply(source, reach_with_flags(FLAGGED, action))
    torch.testing.assert_close(search_pixels(FLAGGED, source, target), action, atol=2e-3, rtol=0)
    undone = search_pixels(FLAGGED, 1 - source, source)
    assert (undone[:, 2] == 0).all()


def test_histograms_find_a_change_whatever_became_of_the_places() -> None:
    source, target, action = jittered(6)
    elsewhere = target.flip((2, 3))
    assert float((search_pixels(SPACE, source, elsewhere, features=histograms) - action).abs().mean()) < 0.01
    assert float((search_pixels(SPACE, source, elsewhere) - action).abs().mean()) > 0.1


def test_histograms_are_sorted_values_of_channels_and_their_differences() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    values = histograms(images).view(2, 7, 20)
    torch.testing.assert_close(values[:, 1], images[:, 1].flatten(1).sort(dim=1).values)
    torch.testing.assert_close(values[:, 3], (images[:, 0] - images[:, 1]).flatten(1).sort(dim=1).values)


def test_a_transformation_of_the_users_is_tried_within_its_range() -> None:
    """Of an effect that is even in its number the sign cannot be seen, and its function may refuse a negative one."""
    square = Transformation(
        name="fog", apply=lambda x, value: x + value.square()[:, None, None, None] * (1 - x), graded=True, both=True,
        low=0.0, high=1.0, neutral=0.0, probability=1.0,
    )  # fmt: skip
    space, source, action = ActionSpace((square,), set="fog"), muted(3).float() / 255, torch.tensor([[0.3], [0.5], [1]])
    target = space.apply(source, space.reach(action))
    torch.testing.assert_close(search_pixels(space, source, target), action, atol=2e-3, rtol=0)
