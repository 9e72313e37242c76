"""Pieces of work in the background take about the time that they shall."""

import time
from types import SimpleNamespace

import pytest

from iwm.page import pace
from iwm.page.pace import FIRST, MOST, Pace


@pytest.mark.parametrize(("seconds", "most"), [(0.0001, MOST), (0.0099, 8), (1.0, 1)])
def test_the_pieces_fit_the_speed(seconds: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    paces = Pace()
    for _ in range(6):
        with paces.of_images(1000) as count:
            now[0] += seconds * count
    assert paces.count == most


def test_no_more_than_is_left() -> None:
    with Pace().of_images(3) as count:
        assert count == 3
    with Pace().of_images(1000) as count:
        assert count == FIRST
        time.sleep(0)
