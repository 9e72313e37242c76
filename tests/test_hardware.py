"""What the machine is said to be."""

from iwm import hardware


def test_free_memory_is_known():
    assert 2**20 < hardware.free_memory() < 2**46


def test_cores_are_counted():
    assert hardware.cores() >= 1
