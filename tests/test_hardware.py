"""What the machine is said to be."""

import torch

from iwm import hardware
from iwm.config import Speed


def test_free_memory_is_known():
    assert 2**20 < hardware.free_memory() < 2**46


def test_cores_are_counted():
    assert hardware.cores() >= 1


def test_fp32_means_fp32_on_convolutions_too():
    before = torch.backends.cudnn.allow_tf32
    with hardware.threads(Speed(threads=1)):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
