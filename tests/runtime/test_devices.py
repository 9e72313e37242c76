"""What the machine is said to be."""

import subprocess
import sys

import pytest
import torch

from iwm import config
from iwm.config import Speed
from iwm.runtime import devices
from iwm.runtime.errors import UserError


def test_free_memory_is_known():
    assert 2**20 < devices.free_memory() < 2**46


def test_cores_are_counted():
    assert devices.cores() >= 1


def test_fp32_means_fp32_on_convolutions_too():
    before = torch.backends.cudnn.allow_tf32
    with devices.threads(Speed(threads=1)):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("name", "gpus", "sentence"),
    [
        ("cuda", 0, "There is no cuda device here; choose --speed.device cpu or auto."),
        ("cuda:1", 0, "There is no cuda:1 device here; choose --speed.device cpu or auto."),
        ("cuda:2", 2, "There is no cuda:2 here, the last one is cuda:1; choose another --speed.device."),
        ("mps", 0, "There is no mps device here; choose --speed.device cpu or auto."),
    ],
)
def test_a_device_that_is_not_there_is_a_sentence(monkeypatch, name, gpus, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError) as complaint:
        devices.device_of(Speed(device=name))
    assert str(complaint.value) == sentence


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "cpu"])
def test_devices_that_are_there_are_taken_by_name(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.device_of(Speed(device=name)) == torch.device(name)


def test_what_is_no_device_is_refused_before_any_work():
    with pytest.raises(UserError, match=r"speed.device is gpu; give auto, cpu, mps, cuda or cuda:N"):
        config.check_bounds(config.Config(speed=Speed(device="gpu")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_numbered_gpu_is_the_current_one_of_its_session():
    last = torch.cuda.device_count() - 1
    with devices.Session.open(Speed(device=f"cuda:{last}")) as session:
        assert torch.cuda.current_device() == last
        assert session.upload(torch.zeros(1)).device == torch.device("cuda", last)


FREED = """
from pathlib import Path
import torch
from iwm.runtime import devices
status = Path("/proc/self/statm")
with devices.returned_memory() as can:
    if can and status.is_file():
        pages = int(status.read_text().split()[1])
        pieces = [torch.ones(2**19) for _ in range(50)]  # 2 MB each
        between = [torch.ones(16) for _ in range(50)]  # what keeps a heap from shrinking
        print(int(status.read_text().split()[1]) - pages)
        del pieces
        print(int(status.read_text().split()[1]) - pages)
"""


def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: pieces that fit into what other tests have freed are kept there."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("this C library has no thresholds, or the system no /proc")
    held, left = map(int, done.stdout.split())
    assert held > 20_000 > 2_000 > left


@pytest.mark.parametrize(
    ("local_rank", "visible", "wanted"),
    [(1, 4, "cuda:1"), (3, 1, "cuda:0"), (4, 4, "There are 4 GPUs for 8 ranks on this machine; start as many ranks")],
)
def test_every_rank_takes_a_gpu_of_its_own(monkeypatch, local_rank, visible, wanted):
    """srun may show each rank its own GPU only."""
    places = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": "8"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if wanted.startswith("cuda"):
        assert str(devices.device_of(Speed(device="auto"))) == wanted
        with pytest.raises(UserError, match=r"Every rank takes its own GPU; give --speed\.device cuda, not cuda:0"):
            devices.device_of(Speed(device="cuda:0"))
    else:
        with pytest.raises(UserError, match=wanted):
            devices.device_of(Speed(device="cuda"))


def test_ranks_of_torchrun_share_the_cores(monkeypatch):
    alone = devices.cores()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert devices.cores() == max(1, alone // 2)
