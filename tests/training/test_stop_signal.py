"""A stop asked for from outside is heeded at once where a batch is waited for, and the run is saved."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny, trained_on, with_run
from picture_files import noise
from safetensors.torch import load_file

from iwm import config
from iwm.data.image_sets import ImageSet
from iwm.data.sources import open_images
from iwm.model.weights import TENSORS
from iwm.run_folder import RunFolder
from iwm.runtime.errors import Interrupted
from iwm.training import loop
from iwm.training.step import Training

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def stopping(monkeypatch: pytest.MonkeyPatch, images: ImageSet, step: int, flag: Path) -> None:
    """From step `step` on no image can be read, and half a second later SIGTERM comes."""
    real_step, real_load = Training.step, images.load

    def at_step(self: Training, batch: object) -> object:
        if batch.step == step:  # pyright: ignore[reportAttributeAccessIssue]
            flag.touch()
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return real_step(self, batch)  # pyright: ignore[reportArgumentType]

    def load(index: int, least: int) -> torch.Tensor:
        until = time.monotonic() + 20
        while flag.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return real_load(index, least)

    monkeypatch.setattr(Training, "step", at_step)
    monkeypatch.setattr(images, "load", load)


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_a_run_that_waits_for_a_disk_and_it_goes_on_bit_for_bit(tmp_path, monkeypatch, workers):
    source = str(noise(tmp_path / "pictures", 72))
    speed = config.Speed(precision="fp32", device="cpu", workers=workers, cache="stream")
    chosen = trained_on(tiny(speed=speed), source=source, out=str(tmp_path / "run"))
    whole = loop.pretrain(with_run(chosen, out=str(tmp_path / "whole")))
    flag = tmp_path / "no answer"
    with monkeypatch.context() as patch:
        images = open_images(source, "train", size=16)
        stopping(patch, images, 1, flag)
        since = time.perf_counter()
        with pytest.raises(Interrupted, match=r"Saved at step \d of 8\. Go on with: iwm pretrain --config"):
            loop.pretrain(chosen, images)
        assert time.perf_counter() - since < 15
    flag.unlink()
    out = loop.pretrain(chosen)
    one, two = (load_file(RunFolder(run).model / TENSORS) for run in (whole, out))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4, 6, 8]


def test_a_stop_before_the_first_step_saves_nothing_and_says_so(tmp_path, monkeypatch):
    source = str(noise(tmp_path / "pictures", 72))
    chosen = trained_on(tiny(), source=source, out=str(tmp_path / "run"))
    real = loop.StopSignal.batches

    def batches(self, loader):
        self.pending = True
        return real(self, loader)

    monkeypatch.setattr(loop.StopSignal, "batches", batches)
    with pytest.raises(Interrupted, match=r"^Stopped before the first step\. Go on with"):
        loop.pretrain(chosen)
    assert not RunFolder(tmp_path / "run").checkpoints.exists()
