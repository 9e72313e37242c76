"""A verb's numbers are set beside their controls: good ones are called good, planted bad ones bad, and nothing is
claimed without a control."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from planted_runs import PROBE, SEGMENT, WORLD

from iwm.reports.finding import Finding
from iwm.reports.verdict import judge_results


def finding(payload: dict[str, Any], verb: str = "world", **more: Any) -> Finding:
    (found,) = judge_results([{"file": f"{verb}-objects", "data": "objects", **payload, **more}])
    return found


@pytest.mark.parametrize(
    ("common", "good", "says"),
    [(0.1, True, "it has 0.300, above its twin"), (0.295, False, "level with"), (0.6, False, "BELOW its twin")],
)
def test_the_twin_is_judged_in_the_space_of_both(common: float, good: bool, says: str) -> None:
    """Whatever each model's MRR is in its own."""
    twin = {"mrr": 0.9, "mrr_common": common, "mrr_common_standard_error": 0.01}
    change = {"mrr_common": 0.3, "mrr_common_standard_error": 0.01, "frozen_random_twin": twin}
    result = finding({**WORLD, **change, "frozen_random_twin_mrr": 0.9})
    assert result.good is good
    assert says in result.sentence
    assert "0.900, which do not compare" in result.sentence


def test_the_twin_is_judged_by_the_error_of_the_paired_difference() -> None:
    """Hard images are hard for both: each has a wide error, the difference a narrow one."""
    twin = {"mrr": 0.9, "mrr_common": 0.28, "mrr_common_standard_error": 0.03}
    change = {"mrr_common": 0.3, "mrr_common_standard_error": 0.03, "frozen_random_twin": twin}
    result = {**WORLD, **change, "frozen_random_twin_mrr": 0.9}
    assert finding(result).good is False
    paired = finding({**result, "mrr_common_difference_standard_error": 0.005})
    assert paired.good is True
    assert "it has 0.300, above its twin" in paired.sentence


@pytest.mark.parametrize(
    ("change", "good", "says"),
    [
        ({}, True, "No twin with a frozen random encoder was measured"),
        ({"frozen_random_twin_mrr": 0.30}, None, "measure again with iwm world --frozen-random-twin"),
        ({"frozen_random_twin_mrr": 0.60}, None, "has 0.600 in a target space of its own, which does not compare"),
        ({"frozen_random_twin_mrr": 0.60, "mrr": 0.03}, False, "does not follow the action"),
        ({"mrr": 0.03}, False, "does not follow the action"),
        ({"mrr": 0.004, "mrr_standard_error": 0.0}, False, "BELOW chance"),
        ({"mrr_shuffled": 0.42}, False, "does not follow the action"),
        ({"mrr": None}, False, "not finite"),
    ],
)
def test_the_verdict_on_the_world_model(change: dict[str, Any], good: bool | None, says: str) -> None:
    found = finding({**WORLD, **change})
    assert found.good is good
    assert says in found.sentence


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"slope": 0.742, "mrr_calibrated": 0.51},
            "slope 0.74 on the true one (1 is all of it); divided by its slope, it has MRR 0.510 (calibrated).",
        ),
        ({"slope": 0.742}, "The predicted change has slope 0.74 on the true one (1 is all of it). No twin"),
        ({}, "0.024 for null action. No twin"),
    ],
)
def test_the_verdict_on_the_world_model_says_what_the_predictor_shrinks(change: dict[str, Any], says: str) -> None:
    assert says in finding({**WORLD, **change}).sentence


INSTANCE = {
    "kind": "instance", "top1": 0.45, "crop_top1": 0.61, "chance": 0.01, "n_val": 119,
    "random_encoder_top1": 0.19, "random_encoder_difference_standard_error": 0.04,
    "raw_pixels_top1": 0.34, "raw_pixels_difference_standard_error": 0.04,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "good", "says"),
    [
        (
            {},
            True,
            "Of 119 images 45.0% are found again by a changed crop (61.0% by the crop unchanged): above raw pixels",
        ),
        ({"raw_pixels_difference_standard_error": 0.06}, False, "level with raw pixels (34.0%) and above a random"),
        ({"top1": 0.1}, False, "BELOW raw pixels (34.0%) and BELOW a random encoder (19.0%)."),
        (
            {"target_top1": 0.4, "undo_inferred_top1": 0.42, "undo_known_top1": 0.5},
            True,
            "In target space it is 40.0%, and where the predictor undoes the change first 42.0% with the action "
            "inferred and 50.0% with the action known.",
        ),
        ({"top1": None}, False, "not finite"),
    ],
)
def test_the_verdict_on_images_found_again(change: dict[str, Any], good: bool, says: str) -> None:
    found = finding({**INSTANCE, **change}, "probe")
    assert found.title == "Instance probe on objects"
    assert found.good is good
    assert says in found.sentence
    alone = {key: value for key, value in INSTANCE.items() if not key.startswith(("raw", "random"))}
    assert finding(alone, "probe").good is None


def test_without_controls_nothing_is_claimed() -> None:
    assert finding({"mrr": 0.4}).good is None
    assert finding({"top1": 0.4, "kind": "knn"}, "probe").good is None
    assert finding({"top1": 0.4, "train": "predictor", "predictor": "pretrained"}, "finetune").good is None


@pytest.mark.parametrize(
    ("top1", "good", "says"),
    [
        (0.46, True, "above raw pixels (33.0%) and above a random encoder (28.0%)"),
        (0.34, False, "level with raw pixels (33.0%) and above a random encoder"),
        (
            0.20,
            False,
            "BELOW raw pixels (33.0%) and BELOW a random encoder (28.0%): the representation has learned nothing",
        ),
    ],
)
def test_the_verdict_on_a_probe(top1: float, good: bool, says: str) -> None:
    found = finding({**PROBE, "top1": top1}, "probe")
    assert found.good is good
    assert says in found.sentence
    assert found.bars[0] == ("this encoder", top1)


def test_a_probe_no_better_than_the_most_frequent_class_has_learned_nothing() -> None:
    unequal = finding({**PROBE, "chance": 0.1, "majority_top1": 0.46}, "probe")
    assert unequal.good is False
    assert "level with the most frequent class (46.0%): the representation has learned nothing" in unequal.sentence
    assert ("the most frequent class", 0.46) in unequal.bars
    equal = finding({**PROBE, "chance": 0.1, "majority_top1": 0.1}, "probe")
    assert equal.good is True
    assert "frequent" not in equal.sentence


def test_a_random_encoder_as_good_means_training_added_nothing() -> None:
    found = finding({**PROBE, "random_encoder_top1": 0.46}, "probe")
    assert found.good is False
    assert "training has added nothing" in found.sentence


def imagined(ranks: Sequence[float], untold: Sequence[float], photos: int = 0) -> dict[str, Any]:
    """The result of `imagine_changes`: a question of every photo, or all of one."""
    names = [f"{place % (photos or len(ranks))}.jpg" for place in range(len(ranks))]
    asked = [{"photo": n, "rank": a, "rank_untold": b} for n, a, b in zip(names, ranks, untold, strict=True)]
    means = {"rank": sum(ranks) / len(ranks), "rank_untold": sum(untold) / len(ranks)}
    named = {"file": "imagine-changes-photos", "data": "photos", "photos": photos or len(ranks)}
    return {**named, "bank": 256, **means, "asked": asked}


@pytest.mark.parametrize(
    ("ranks", "untold", "good", "says"),
    [
        ((1, 2, 9, 3), (100, 90, 120, 110), True, "+101.2 places on no change (95 % interval +85.1 to +117.4)"),
        ((140, 150, 130, 141), (200, 210, 205, 199), False, "-11.8 places on a guess"),
        ((60, 50, 70, 66), (40, 30, 50, 41), False, "-21.2 places on no change"),
        ((1, 40, 60, 170), (100, 90, 120, 110), False, "it cannot be shown that the model follows the change"),
    ],
)
def test_imagined_changes_are_judged_by_the_places_gained_over_the_photos(ranks, untold, good, says) -> None:
    (finding,) = judge_results([imagined(ranks, untold)])
    assert finding.good is good
    assert says in finding.sentence
    assert "by a guess 128.5" in finding.sentence
    assert f"Over {len(ranks)} photos" in finding.sentence


def test_a_model_whose_ranks_are_noise_seldom_beats_its_controls() -> None:
    """It has the better mean of three in one of three cases."""
    ranks = np.random.default_rng(0).integers(1, 257, (400, 2, 6)).tolist()
    passed = [finding.good for ours, untold in ranks for finding in judge_results([imagined(ours, untold)])]
    assert sum(bool(good) for good in passed) < 0.05 * len(passed)


def test_one_photo_decides_nothing_of_imagined_changes() -> None:
    one = imagined((1, 2, 1, 3, 1, 1), (100, 90, 120, 110, 100, 100), photos=1)
    older = {key: value for key, value in one.items() if key != "photos"}
    for result in (one, older):
        (finding,) = judge_results([result])
        assert finding.good is None
        assert "All questions are of one photo, and one photo decides nothing" in finding.sentence
    (alike,) = judge_results([imagined((1, 2, 1, 3), (100, 90, 120, 110), photos=2)])
    assert "Over 2 photos" in alike.sentence, "two questions of a photo are one measurement"


def test_imagined_changes_without_finite_ranks_or_controls() -> None:
    (finding,) = judge_results([imagined((1, 2), (3, 4)) | {"rank": None}])
    assert finding.good is False
    (finding,) = judge_results([imagined((1, 2), (3, 4)) | {"asked": None}])
    assert finding.good is None
    assert judge_results([{"file": "imagine-hue-0.1-a", "rank": 3.0, "bank": 256}]) == []


@pytest.mark.parametrize(
    ("random", "good", "said"),
    [
        (0.3, True, "above nothing pretrained"),
        (0.39, False, "level with"),
        (0.5, False, "BELOW"),
        (None, None, "cannot"),
    ],
)
def test_segmentation_is_judged_beside_its_controls(random, good, said):
    result = SEGMENT | ({} if random is None else {"random_encoder_miou": random})
    (found,) = judge_results([result])
    assert found.good is good
    assert said in found.sentence
    assert found.bars[0] == ("this run", 0.4)


def test_segmentation_of_a_single_image_is_not_judged():
    for result in ({"miou_standard_error": None}, {"n_val": 1, "miou_standard_error": 5e-17}):
        (found,) = judge_results([SEGMENT | {"random_encoder_miou": 0.3} | result])
        assert found.good is None
        assert "on a single image, so its error is not known" in found.sentence


@pytest.mark.parametrize(
    ("train", "random", "pixels", "good", "said"),
    [
        (
            "encoder",
            0.7,
            0.4,
            True,
            "Finetuning the encoder (80.0% right) is above nothing pretrained (70.0%) and above",
        ),
        (
            "last-2",
            0.79,
            0.4,
            False,
            "Finetuning the encoder's last 2 blocks (80.0% right) is level with nothing pretrained",
        ),
        ("head", 0.7, 0.9, False, "above nothing pretrained (70.0%) and BELOW raw pixels (90.0%)"),
        ("head", None, 0.4, None, "without baselines"),
    ],
)
def test_a_finetuning_without_a_predictor_is_judged_beside_its_controls(train, random, pixels, good, said) -> None:
    numbers = {"top1": 0.8, "n_val": 1000, "random_encoder_top1": random, "raw_pixels_top1": pixels}
    (found,) = judge_results([{"file": "finetune-x-d", "data": "d", "train": train, "predictor": None, **numbers}])
    assert found.good is good
    assert said in found.sentence
    assert found.bars[0] == ("this run", 0.8)


def test_a_single_image_says_nothing_of_the_mrr() -> None:
    found = finding(WORLD, mrr_standard_error=None)
    assert found.good is None
    assert "on a single image" in found.sentence
