"""How long work takes is measured on as little of it as says something."""

import time

import pytest
import torch

from iwm.runtime import pace

CPU = torch.device("cpu")


def test_a_batch_grows_until_it_takes_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "ENOUGH", 0.02)
    counts = []

    def work(count: int) -> None:
        counts.append(count)
        time.sleep(0.005 * count)

    measured = pace.measure(work, 1000, CPU, least=1)
    assert counts[:3] == [1, 2, 4]
    assert measured.count == max(counts) <= 8
    assert measured.seconds_of(200) == pytest.approx(1.0, rel=0.5)


def test_it_never_grows_past_the_most() -> None:
    counts = []
    measured = pace.measure(counts.append, 6, CPU, least=2)
    assert (measured.count, max(counts)) == (6, 6)
    assert pace.measure(counts.append, 1, CPU, least=2).count == 1


def test_memory_grows_with_the_batch() -> None:
    measured = pace.Pace(count=4, seconds=1.0, bytes=1000, bytes_of_one=50.0)
    assert (measured.bytes_in_batch(4), measured.bytes_in_batch(10), measured.bytes_in_batch(1)) == (1000, 1300, 1000)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.52, "about 0.52 seconds"), (100, "about 1e+02 seconds"), (150, "about 2.5 minutes"), (90000, "about 25 hours")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert pace.in_words(seconds) == words.replace("1e+02", "100")
