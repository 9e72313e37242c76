"""Decoding processes neither lose a batch nor outlive their loader."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import noise

from iwm import config
from iwm.data.image_sets import ImageSet
from iwm.data.loader import Loader
from iwm.data.sources import open_images
from iwm.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def loader(images: ImageSet, workers: int, pairs: bool = False) -> Loader:
    speed = config.Speed(cache="stream", workers=workers)
    return Loader(images, config.Data(image_size=12), 4, 3, speed, 0, 6, pairs=pairs)


def test_full_shared_memory_loses_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """What PyTorch says in a container whose /dev/shm is full, it says in the process that decodes."""
    images = open_images(noise(tmp_path, 9), "all")
    wanted = list(loader(images, 0, pairs=True))

    def full(self: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    batches = list(loader(images, 2, pairs=True))
    assert len(batches) == len(wanted) == 6
    for one, other in zip(batches, wanted, strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert one.others is not None
        assert other.others is not None
        assert torch.equal(one.others, other.others)
    assert caplog.text.count("docker --shm-size") == 1


def test_a_process_that_was_killed_is_a_sentence(tmp_path: Path) -> None:
    coming = iter(loader(open_images(noise(tmp_path, 8), "all"), 1))
    next(coming)
    (worker,) = multiprocessing.active_children()
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"ended from outside.*--speed\.workers"):
        list(coming)


def test_a_process_that_waits_for_a_disk_ends_with_its_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(noise(tmp_path, 8), "all")
    real = images.load
    trainer = os.getpid()

    def stuck(index: int, least: int) -> torch.Tensor:
        if os.getpid() != trainer and (tmp_path / "stuck").exists():
            time.sleep(60)
        return real(index, least)

    monkeypatch.setattr(images, "load", stuck)
    loading = loader(images, 2)
    next(iter(loading))
    (tmp_path / "stuck").touch()
    time.sleep(0.2)
    since = time.perf_counter()
    loading.close()
    assert time.perf_counter() - since < 5
    assert not multiprocessing.active_children()
