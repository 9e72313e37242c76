"""Batches are the same from memory and from processes, after a resume and for every size of their parts."""

import itertools
import logging
import multiprocessing
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import noise, write, zipped

from iwm import config
from iwm.data.image_sets import Subset
from iwm.data.loader import Batch, Loader, decoded_bytes, load_all, load_chunks, load_pairs
from iwm.data.sources import open_images
from iwm.data.workers import Part
from iwm.runtime import devices
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def loader(
    source: Path | str, batch_size: int = 4, start_step: int = 0, steps: int | None = 6, **speed: object
) -> Loader:
    data = config.Data(image_size=12)
    return Loader(open_images(str(source), "all"), data, batch_size, 3, config.Speed(**speed), start_step, steps)  # pyright: ignore[reportArgumentType]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.step == b.step and np.array_equal(a.indices, b.indices) and torch.equal(a.images, b.images)
        for a, b in zip(one, other, strict=True)
    )


def test_load_all_names_what_it_leaves_out(tmp_path, caplog):
    opened = open_images(str(noise(tmp_path, 10, broken=(2, 5))), "all")
    with caplog.at_level(logging.WARNING, "iwm"):
        pixels, kept = load_all(opened, 12)
    assert kept.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert pixels.shape == (8, 3, 12, 12)
    assert len(caplog.records) == 2
    assert "002.png" in caplog.text
    with caplog.at_level(logging.WARNING, "iwm"):
        assert load_all(Subset(opened, np.arange(3)), 12)[1].tolist() == [0, 1]
    assert len(caplog.records) == 2  # named once, however often it is passed over


def test_a_chunk_of_broken_images_is_passed_over(tmp_path):
    opened = open_images(str(noise(tmp_path / "a", 7, broken=(1, 4, 5, 6))), "all")
    chunks = list(load_chunks(opened, 12, 2))
    assert [rows.tolist() for _, rows in chunks] == [[0], [2, 3]]
    assert torch.equal(torch.cat([pixels for pixels, _ in chunks]), load_all(opened, 12)[0])
    with pytest.raises(UserError, match="Not one of the 3 images"):
        list(load_chunks(open_images(str(noise(tmp_path / "b", 3, broken=(0, 1, 2))), "all"), 12, 2))


@forks
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_memory_stream_and_workers_give_the_same_bytes(tmp_path, form):
    source = noise(tmp_path / "set", 18, broken=(4, 5, 11))
    if form == "zip":
        source = zipped(source, tmp_path / "set.zip")
    memory = loader(source, 6, cache="memory")
    reference = list(memory)
    assert memory.in_memory
    assert len(reference) == 6
    for workers in (0, 1, 2):
        streamed = loader(source, 6, cache="stream", workers=workers)
        assert not streamed.in_memory
        assert same(reference, list(streamed))
        assert sorted(streamed.broken) == sorted(memory.broken)


def test_large_batches_are_made_in_parts(tmp_path, monkeypatch):
    noise(tmp_path, 18)
    whole = list(loader(tmp_path, 10, steps=3, cache="memory"))
    monkeypatch.setattr("iwm.data.loader.CHUNK", 4)
    assert same(whole, list(loader(tmp_path, 10, steps=3, cache="memory")))
    assert same(whole, list(loader(tmp_path, 10, steps=3, cache="stream", workers=0)))


def test_order_epochs_and_labels(tmp_path):
    for kind, index in itertools.product("ab", range(5)):
        write(tmp_path / kind / f"{index}.png")
    loading = loader(tmp_path, 4, steps=4)
    assert loading.steps_per_epoch == 2
    batches = list(loading)
    for epoch in range(2):
        indices = np.concatenate([batch.indices for batch in batches[2 * epoch : 2 * epoch + 2]])
        assert np.array_equal(indices, permutation(3, "order", epoch, 10)[:8])
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.tolist() == (batch.indices >= 5).astype(int).tolist()


@forks
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_resuming_gives_the_batches_that_would_have_followed(tmp_path, cache):
    noise(tmp_path, 10, broken=(3,))
    whole = list(loader(tmp_path, cache=cache, workers=1))
    assert same(whole[3:], list(loader(tmp_path, start_step=3, cache=cache, workers=1)))


@forks
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_endless_iteration_can_be_stopped_and_begun_anew(tmp_path, cache):
    noise(tmp_path, 8)
    loading = loader(tmp_path, steps=None, cache=cache, workers=1)
    first = list(itertools.islice(loading, 5))
    loading.close()
    assert same(first, list(itertools.islice(loading, 5)))
    loading.close()


@forks
def test_batches_go_on_while_a_scheduler_stops_every_process_of_the_job(tmp_path):
    noise(tmp_path, 8)
    wanted = list(loader(tmp_path, steps=12, cache="stream", workers=0))
    loading = loader(tmp_path, steps=12, cache="stream", workers=1)
    coming = iter(loading)
    batches = [next(coming)]
    for worker in multiprocessing.active_children():
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert same([*batches, *coming], wanted)
    loading.close()


def test_a_broken_image_is_skipped_named_once_and_counted(tmp_path, caplog):
    noise(tmp_path, 6, broken=(2, 3))
    with caplog.at_level(logging.WARNING, "iwm"):
        loading = loader(tmp_path, 6, steps=5, cache="stream", workers=0)
        batches = list(loading)
    assert [Path(name).name for name in sorted(loading.broken)] == ["002.png", "003.png"]
    assert caplog.text.count("002.png") == caplog.text.count("003.png") == 1
    for batch in batches:
        assert sorted(batch.indices.tolist()) == [0, 1, 4, 4, 4, 5]


@forks
@pytest.mark.parametrize(
    "speed", [{"cache": "memory"}, {"cache": "stream", "workers": 0}, {"cache": "stream", "workers": 1}]
)
def test_no_image_left(tmp_path, speed):
    noise(tmp_path, 4, broken=(0, 1, 2, 3))
    with pytest.raises(
        UserError, match=r"Not one of the 4 images .* can be decoded; check its files, e\.g\. .*00\d\.png"
    ):
        list(loader(tmp_path, **speed))


def test_batch_larger_than_the_set(tmp_path):
    noise(tmp_path, 4)
    with pytest.raises(UserError, match=r"A batch of 5 is larger than .* its 4 images; lower optim\.batch_size"):
        loader(tmp_path, 5)


def test_memory_is_used_when_a_quarter_of_what_is_free_suffices(tmp_path, monkeypatch):
    noise(tmp_path, 8)
    opened = open_images(str(tmp_path), "all")
    exact = sum(opened.load(index).numel() for index in range(8))
    assert decoded_bytes(opened) == pytest.approx(exact, abs=8)
    monkeypatch.setattr(devices, "free_memory", lambda: 4 * exact + 40)
    assert loader(tmp_path).in_memory
    monkeypatch.setattr(devices, "free_memory", lambda: 4 * exact - 40)
    assert not loader(tmp_path).in_memory


@forks
def test_pairs_are_independent_crops_of_the_same_images(tmp_path):
    """The first is the crop of a loader without pairs, the other one depends on nothing of it; both from any path."""
    opened = open_images(str(noise(tmp_path, 8)), "all")
    data = config.Data(image_size=12, crop_area=(0.2, 1.0))

    def drawn(pairs: bool, **speed: object) -> list[Batch]:
        return list(Loader(opened, data, 4, 3, config.Speed(**speed), 0, 4, pairs=pairs))  # pyright: ignore[reportArgumentType]

    single, paired, streamed = drawn(False), drawn(True), drawn(True, cache="stream", workers=1)
    assert same(single, paired)
    assert all(batch.others is None for batch in single)
    for batch, other in zip(paired, streamed, strict=True):
        assert batch.others is not None
        assert other.others is not None
        assert torch.equal(batch.others, other.others)
        assert not (batch.images == batch.others).flatten(1).all(dim=1).any()


def test_all_pairs_name_what_they_leave_out(tmp_path):
    opened = open_images(str(noise(tmp_path, 6, broken=(2,))), "all")
    first, second, kept = load_pairs(opened, config.Data(image_size=12), 0, -1)
    assert kept.tolist() == [0, 1, 3, 4, 5]
    assert first.shape == second.shape == (5, 3, 12, 12)
    assert not torch.equal(first, second)


def test_rows_of_several_ranks_are_the_batch_of_one(tmp_path):
    """Two micro-batches of four, each shared by two ranks."""
    opened = open_images(str(noise(tmp_path, 17, broken=(3,))), "all")
    data, speed = config.Data(image_size=12), config.Speed(cache="memory")
    whole = list(Loader(opened, data, 8, 3, speed, 1, 6))
    first = list(Loader(opened, data, 8, 3, speed, 1, 6, rows=[range(2), range(4, 6)]))
    second = list(Loader(opened, data, 8, 3, speed, 1, 6, rows=[range(2, 4), range(6, 8)]))
    for one, mine, yours in zip(whole, first, second, strict=True):
        assert one.indices.reshape(2, 2, 2).transpose(1, 0, 2).ravel().tolist() == [*mine.indices, *yours.indices]
        parts = one.images.view(2, 2, 2, 3, 12, 12).transpose(0, 1).flatten(0, 2)
        assert torch.equal(parts, torch.cat([mine.images, yours.images]))


@forks
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_pictures_for_a_gpu_are_pinned_off_the_training_thread(tmp_path, monkeypatch, cache):
    """Pinning copies a batch, 5 ms for 256 images of 224 px; a stand-in for the GPU says where it is done."""
    opened = open_images(str(noise(tmp_path, 9)), "all")
    threads: list[tuple[str, bool]] = []

    def note(what: str, part: Part) -> Part:
        threads.append((what, threading.current_thread() is threading.main_thread()))
        return part

    monkeypatch.setattr(Part, "pin_memory", lambda self: note("pinned", self))
    monkeypatch.setattr(Part, "on", lambda self, device: note(f"on {device}", self))
    data, speed, device = config.Data(image_size=12), config.Speed(cache=cache, workers=1), torch.device("cuda", 1)
    batches = list(Loader(opened, data, 4, 3, speed, 0, 3, device=device))
    assert same(batches, list(Loader(opened, data, 4, 3, speed, 0, 3)))
    assert sorted(threads) == [("on cuda:1", True)] * 3 + [("pinned", False)] * 3
    if cache == "stream":
        endless = Loader(opened, data, 4, 3, speed, device=device)
        next(iter(endless))
        endless.close()
        assert not multiprocessing.active_children()
