"""Images on the device are cropped there as the loader crops them on the host; here the device is the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import noise, write
from torch import Tensor

from iwm import config
from iwm.data.crops import random_crops
from iwm.data.loader import Batch, Loader
from iwm.data.resident import ResidentImages
from iwm.data.sources import open_images
from iwm.runtime import devices
from iwm.runtime.errors import UserError

CPU = torch.device("cpu")
SMALL = [(32, 32)] * 6
PHOTOS = [(250, 187), (236, 300), (320, 240), (150, 450)]
TINY = [(20, 31), (16, 16), (12, 50)]


def pictures(shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Noise, channels last as decoding gives it."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
        for height, width in shapes
    ]


@pytest.mark.parametrize(
    ("shapes", "size", "count"), [(SMALL, 32, 48), (PHOTOS, 112, 12), (TINY, 48, 24)], ids=["small", "photos", "tiny"]
)
@pytest.mark.parametrize("at_once", [2**25, 2**17])
def test_crops_are_those_of_the_host(monkeypatch, shapes, size, count, at_once):
    """Rounding apart: at most 1 of 255, at fewer than one pixel of a thousand; small pictures equal bit for bit."""
    monkeypatch.setattr("iwm.data.resident.AT_ONCE", at_once)
    images, indices = pictures(shapes), np.arange(count) % len(shapes)
    resident = ResidentImages(images, CPU)
    for step, flip in ((1, 0.5), (2, 0.0), (3, 1.0)):
        theirs = random_crops([images[i] for i in indices], size, (0.3, 1.0), flip, 0, step, indices)
        ours = resident.crops(size, (0.3, 1.0), flip, 0, step, indices)
        difference = (ours.int() - theirs.int()).abs()
        assert int(difference.max()) <= 1
        assert float((difference > 0).float().mean()) < 1e-3
        if shapes is not PHOTOS:
            assert torch.equal(ours, theirs)


def test_nobody_waits_for_the_device():
    """A meta tensor holds nothing that could be read: whoever asks for a value fails."""
    resident = ResidentImages(pictures(TINY), torch.device("meta"))
    crops = resident.crops(48, (0.3, 1.0), 0.5, 0, 1, np.array([0, 2, 1, 0]))
    assert crops.shape == (4, 3, 48, 48)
    assert crops.dtype == torch.uint8


def batches(source: Path, cache: str, start: int = 0, **options: object) -> tuple[Loader, list[Batch]]:
    data, speed = config.Data(image_size=12), config.Speed(cache=cache)  # pyright: ignore[reportArgumentType]
    loader = Loader(open_images(str(source), "all"), data, 4, 3, speed, start, 6, device=CPU, **options)  # pyright: ignore[reportArgumentType]
    return loader, list(loader)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.step == other.step
        assert np.array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
        assert (one.others is None) == (other.others is None)
        assert one.others is None or (other.others is not None and torch.equal(one.others, other.others))
        assert (one.labels is None) == (other.labels is None)
        assert one.labels is None or (other.labels is not None and torch.equal(one.labels, other.labels))


@pytest.mark.parametrize("options", [{}, {"pairs": True}, {"rows": [range(2, 4)]}], ids=["plain", "pairs", "rows"])
def test_batches_are_those_from_memory(tmp_path, monkeypatch, options):
    """Order, labels, what stands in for a broken image (also for the last one), parts of a batch, a resumed run."""
    monkeypatch.setattr("iwm.data.loader.CHUNK", 3)
    noise(tmp_path / "a", 7, broken=(2, 3))
    noise(tmp_path / "b", 6, broken=(0, 5))
    memory, theirs = batches(tmp_path, "memory", **options)
    loader, ours = batches(tmp_path, "device", **options)
    assert loader.place == "on the device"
    assert loader.broken == memory.broken
    assert len(loader.broken) == 4
    assert ours[0].labels is not None
    assert_same(ours, theirs)
    assert_same(batches(tmp_path, "device", start=4, **options)[1], theirs[4:])


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    for number in range(4):
        write(tmp_path / f"{number}.png", size=(400, 400))
    monkeypatch.setattr(devices, "free_memory", lambda: 10**6)
    sentence = r"take about 0\.00192 GB, more than a quarter of the 0\.001 GB that the device cpu has free"
    with pytest.raises(UserError, match=sentence):
        batches(tmp_path, "device")


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="Not one of the 5 images"):
        batches(noise(tmp_path, 5, broken=tuple(range(5))), "device")
