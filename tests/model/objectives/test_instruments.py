"""A line of metrics in words, by the definitions of docs/concepts.md."""

import math

import pytest

from iwm.model.objectives import OBJECTIVES, instruments

LINE = {
    "target_pixel_r2": 0.66,
    "target_pixel_r2_blocks": [0.84, 0.75, 0.63, 0.41],
    "target_position_share": 0.33,
    "target_rankme": 93.4,
    "photometric_share": 0.55,
    "action_slope": 0.5,
    "action_correlation": 0.8,
}
R2 = "R2 0.66 from position and the patch's own pixels by a linear map (block by block 0.84 0.75 0.63 0.41)"


def test_every_instrument_is_told():
    targets, photometric = instruments.of_targets(LINE)
    assert targets == f"Targets: {R2}, 0.33 from position alone, RankMe 93 (directions they span)."
    assert photometric.startswith("Photometric share 0.55: how far a change of colours moves the targets")
    assert photometric.endswith("2: as far as another image).")
    (change,) = instruments.of_changes(LINE)
    assert "slope 0.50 (1: it goes the whole way), correlation 0.80" in change
    with_last = instruments.of_targets({**LINE, "photometric_share_last": 0.12})[1]
    assert with_last.endswith("another image); of the last block 0.12.")


@pytest.mark.parametrize("damage", [None, math.nan, math.inf, "much", True])
def test_what_is_no_number_is_left_out(damage):
    broken = {**LINE, "target_pixel_r2": damage, "photometric_share": damage, "action_slope": damage}
    assert instruments.of_targets(broken) == ["Targets: 0.33 from position alone, RankMe 93 (directions they span)."]
    assert instruments.of_changes(broken) == []
    assert instruments.telling({"target_pixel_r2": damage, "photometric_share": damage}) == []
    part = instruments.of_targets({**LINE, "target_pixel_r2_blocks": [0.84, damage]})[0]
    assert part.startswith(f"Targets: {R2.split(' 0.75')[0]}")


def test_older_lines_and_those_without_a_predictor_say_nothing():
    assert instruments.of_targets({}) == instruments.of_changes({}) == []
    assert instruments.of_changes({**LINE, "conditioned": 0.0}) == [], "it is told no action"
    assert OBJECTIVES["joint"].instruments({"rankme": 30.0}) == []
    only = OBJECTIVES["pixels"].instruments({"photometric_share": 0.5, "action_slope": 0.1, "action_correlation": 0.2})
    assert [sentence.split(" ")[0] for sentence in only] == ["Photometric", "Predicted"]
