"""What is read of a result is a finite number or nothing, and names are found where older results have them."""

import math
from typing import Any

import pytest

from iwm.reports import finding


@pytest.mark.parametrize(
    ("value", "read"), [(3, 3.0), (0.5, 0.5), (True, None), ("0.5", None), (None, None), (math.nan, None)]
)
def test_only_finite_numbers_are_numbers(value: Any, read: float | None) -> None:
    assert finding.number({"top1": value}, "top1") == read
    assert finding.numbers({"top1": value}, {"top1": "ours", "other": "theirs"}) == (
        {} if read is None else {"ours": read}
    )


def test_the_data_of_a_result_is_named_by_its_settings_where_it_says_nothing_itself() -> None:
    assert finding.data_of({"data": "rooms", "settings": {"data": "/a/b.npz"}}) == "rooms"
    assert finding.data_of({"settings": {"data": "/a/b.npz"}}) == "b"
    assert finding.data_of({"settings": "broken"}) == "unknown data"
    assert finding.verb_of({"file": "probe-linear-rooms"}) == "probe"


def test_several_parts_are_joined_as_in_a_sentence() -> None:
    assert [finding.join(parts) for parts in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_results_are_put_together_by_their_weights() -> None:
    def result(mark: str, date: str, **more: Any) -> dict[str, Any]:
        return {"file": f"probe-{mark}-{date}", "date": date, **({"run_weights": mark} if mark else {}), **more}

    old, first, second = result("", "1"), result("a", "2"), result("b", "3")
    assert finding.by_weights([]) == []
    assert finding.by_weights([old]) == [[old]]
    assert finding.by_weights([first, old, second]) == [[old, second], [first]], "the newest are the run's"
    gone = result("b", "3", of_earlier_weights=True)
    assert finding.by_weights([gone, first, old]) == [[first, old], [gone]], "older files count as the run's"
    assert finding.by_weights([gone, old]) == [[old], [gone]]
    assert [finding.note_of(each) for each in (gone, old)] == [" (of earlier weights)", ""]


def test_a_finding_of_earlier_weights_says_so_and_has_no_sign() -> None:
    now = finding.Finding("Probe", True, "It is above.", (("ours", 0.5),)).of_earlier_weights()
    assert (now.title, now.good, now.bars) == ("Probe (of earlier weights)", None, (("ours", 0.5),))
    assert now.sentence.startswith("Measured on earlier weights than the run now holds")
    assert now.sentence.endswith("It is above.")


def test_the_precision_of_a_result_is_among_its_settings_wherever_it_stands() -> None:
    assert finding.settings_of({"settings": {"seed": 0}, "precision": "bf16"}) == {"precision": "bf16", "seed": 0}
    assert finding.settings_of({"settings": {"precision": "fp32"}}) == {"precision": "fp32"}
    assert finding.settings_of({"settings": {"seed": 0}}) == {"seed": 0}
    assert finding.settings_of({"settings": "broken"}) == {}
