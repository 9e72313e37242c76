"""What the machine is said to be."""

import torch

from iwm.config import Speed
from iwm.runtime import devices


def test_free_memory_is_known():
    assert 2**20 < devices.free_memory() < 2**46


def test_cores_are_counted():
    assert devices.cores() >= 1


def test_fp32_means_fp32_on_convolutions_too():
    before = torch.backends.cudnn.allow_tf32
    with devices.threads(Speed(threads=1)):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
