"""Random crops in batches, without end. Small sets are decoded once and kept in memory, larger ones stream through
decoding processes, and both give the same bytes for the same seed, step and image. Broken images are skipped, named
once and counted.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iwm import config
from iwm.data import memory, workers
from iwm.data.broken_images import name_broken, none_left, readable, without_broken
from iwm.data.crops import center, crop_size, least_side, random_crops
from iwm.data.decode import BrokenImage, NothingReadable
from iwm.data.image_sets import ImageSet, Subset, require_batch
from iwm.data.resident import ResidentImages, require_room
from iwm.data.sources import open_pictures
from iwm.data.workers import Part
from iwm.runtime import devices, distributed
from iwm.runtime.algebra import joined
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

CROPS = ("crop", "other crop")
"""What the crops of an image's two views are drawn for."""
CHUNK = 256
"""Most images one task of a decoding process holds: bounds both latency and memory at large batches."""


@dataclass(frozen=True)
class Batch:
    """Crops of one training step."""

    step: int
    indices: Int64[np.ndarray, " b"]
    """Of the images in their set; where one was broken, of the next that is not."""
    images: UInt8[Tensor, "b 3 size size"]
    labels: Int64[Tensor, " b"] | None
    waited: float
    """Seconds the consumer waited for this batch."""
    others: UInt8[Tensor, "b 3 size size"] | None = None
    """Crops of the same images drawn independently, for two views that share no geometry."""


class Loader:
    """Endless random crops in batches: batch `step` is a pure function of the images, the settings, seed and step.

    The order of an epoch is `permutation(seed, "order", epoch, n)`; its last incomplete batch is dropped. With `pairs`
    every image is cropped twice, independently. Iterating starts at `start_step` and ends before `steps`, the length of
    the training that `data.start_share` is of (None: never). `rows` are the places in each batch that are made here
    (None: all): several ranks share the batches. Crops are pinned and copied ahead for a GPU as `device`; images that
    live on the device are cropped there (`resident`), by whoever asks for the batch: that is a few dozen calls.
    Raises UserError when a batch exceeds the set, no image can be decoded, or the device has no room for them.
    """

    def __init__(
        self,
        images: ImageSet,
        data: config.Data,
        batch_size: int,
        seed: int,
        speed: config.Speed,
        start_step: int = 0,
        steps: int | None = None,
        pairs: bool = False,
        rows: Sequence[range] | None = None,
        device: torch.device | None = None,
    ):
        require_batch(batch_size, len(images), images.name)
        self.images, self.start_step, self.steps = images, start_step, steps
        self.steps_per_epoch = len(images) // batch_size
        place = device or torch.device("cpu")
        on_device, least = speed.cache == "device", least_side(data.image_size, data.crop_area)
        if on_device:
            require_room(images.name, decoded_bytes(images, least), place)
        self.in_memory = speed.cache in ("memory", "device") or (
            speed.cache == "auto" and decoded_bytes(images, least) <= devices.free_memory() / 4
        )
        self.broken: list[str] = []
        """Names of the images found broken so far."""
        self.place = "on the device" if on_device else "in memory" if self.in_memory else "streamed"
        """Where the pictures come from, in words."""
        places = np.concatenate([np.asarray(part, dtype=np.int64) for part in rows or [range(batch_size)]])
        self._maker = _Maker(images, data, batch_size, seed, self.steps_per_epoch, pairs, places, steps or 0)
        self._device = device if device is not None and device.type == "cuda" else None
        self._workers = max(1, devices.cores() - 1) if speed.workers < 0 else speed.workers
        self._running: Iterator[Batch] | None = None
        if self.in_memory:
            self._maker.decoded = _decode_all(images, self._maker.least)
            self._note([image for image in self._maker.decoded if isinstance(image, BrokenImage)])
            if len(self.broken) == len(images):
                raise UserError(none_left(images, self._maker.decoded))
        if on_device:
            self._maker.move_to(place)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        if self._maker.resident:
            self._running = self._batches(map(self._maker.make, self._maker.tasks(self.start_step, self.steps)))
        else:
            self._running = self._in_process() if self.in_memory or self._workers == 0 else self._streamed()
        return self._running

    def close(self) -> None:
        """Stop whatever prepares batches. Iterating anew starts over at `start_step`."""
        if self._running is not None:
            cast(Any, self._running).close()
            self._running = None

    def _in_process(self) -> Iterator[Batch]:
        """One thread prepares the next batch: nearly all its work releases Python's lock."""
        thread = ThreadPoolExecutor(1)
        try:
            make = (lambda task: self._maker.make(task).pin_memory()) if self._device else self._maker.make
            yield from self._batches(workers.ahead(thread, make, self._maker.tasks(self.start_step, self.steps)))
        finally:
            thread.shutdown(wait=False)  # a disk that does not answer keeps nobody from saving

    def _streamed(self) -> Iterator[Batch]:
        tasks = self._maker.tasks(self.start_step, self.steps)
        parts = DataLoader(
            self._maker,
            batch_size=None,
            sampler=cast(Any, tasks),
            num_workers=self._workers,
            collate_fn=cast(Any, workers.shared),
            worker_init_fn=workers.prepare,
        )
        sent = workers.parts_of(parts)
        if self._device is None:
            yield from self._batches(sent)
            return
        # Not the DataLoader's own thread for this: it may wait without end for a process that was ended while it wrote.
        thread = ThreadPoolExecutor(1)
        try:
            yield from self._batches(workers.ahead(thread, Part.pin_memory, sent))
        finally:
            cast(Any, sent).close()
            thread.shutdown(wait=False)

    def _batches(self, parts: Iterator[Part]) -> Iterator[Batch]:
        since = time.perf_counter()
        gathered: list[Part] = []
        for part in parts:
            self._note(part.broken)
            if not len(part.indices):
                raise UserError(none_left(self.images, part.broken))
            gathered.append(part.on(self._device) if self._device else part)
            if len(gathered) < self._maker.chunks:
                continue
            indices = np.concatenate([one.indices for one in gathered])
            part = gathered[-1]
            crops = joined([one.crops for one in gathered])
            others = None if part.others is None else joined([cast(Tensor, one.others) for one in gathered])
            labels = None if self.images.labels is None else torch.from_numpy(self.images.labels[indices])
            gathered = []
            yield Batch(part.step, indices, crops, labels, time.perf_counter() - since, others)
            since = time.perf_counter()

    def _note(self, broken: Sequence[BrokenImage]) -> None:
        for one in broken:
            if one.name not in self.broken:
                self.broken.append(one.name)
                name_broken(one)


class _Maker(Dataset[Part]):
    """Makes parts of batches, from memory or by decoding; the same code in every path."""

    def __init__(
        self,
        images: ImageSet,
        data: config.Data,
        batch_size: int,
        seed: int,
        steps_per_epoch: int,
        pairs: bool,
        places: Int64[np.ndarray, " p"],
        steps: int,
    ):
        self.images, self.data, self.batch_size, self.seed, self.steps = images, data, batch_size, seed, steps
        self.steps_per_epoch, self.views, self.places = steps_per_epoch, 2 if pairs else 1, places
        self.chunks = math.ceil(len(places) / CHUNK)
        self.least = least_side(data.image_size, data.crop_area)
        self.decoded: Sequence[Tensor | BrokenImage] | None = None
        self.resident: ResidentImages | None = None
        self._known_broken: dict[int, BrokenImage] = {}

    def tasks(self, step: int, steps: int | None) -> Iterator[tuple[int, int]]:
        """(step, chunk) of every part, from `step` on."""
        while steps is None or step < steps:
            yield from ((step, chunk) for chunk in range(self.chunks))
            step += 1

    def move_to(self, device: torch.device) -> None:
        """Keep the decoded images on the device instead, and make the crops there."""
        assert self.decoded is not None
        self.resident = ResidentImages(self.decoded, device)
        self.decoded = None

    def __getitem__(self, task: tuple[int, int]) -> Part:
        return self.make(task)

    def make(self, task: tuple[int, int]) -> Part:
        step, chunk = task
        epoch, batch = divmod(step, self.steps_per_epoch)
        places = batch * self.batch_size + self.places[chunk * CHUNK : (chunk + 1) * CHUNK]
        wanted = order_of_epoch(self.seed, epoch, len(self.images))[places]
        if self.resident:
            return self._part(step, self.resident.next_whole(wanted), [], self.resident.crops)
        broken: list[BrokenImage] = []
        loaded = [self._next_whole(int(i), broken) for i in wanted]
        rows = [one for one in loaded if one is not None]
        indices = np.array([index for index, _ in rows], dtype=np.int64)
        if not rows:
            return Part(step, indices, torch.empty(0, 3, 0, 0, dtype=torch.uint8), broken)
        return self._part(step, indices, broken, partial(random_crops, [image for _, image in rows]))

    def _part(
        self,
        step: int,
        indices: Int64[np.ndarray, " b"],
        broken: list[BrokenImage],
        make: Callable[..., UInt8[Tensor, "b 3 s s"]],
    ) -> Part:
        """The crops that `make` gives, one of each image or two."""
        data, size = self.data, crop_size(self.data, step, self.steps)
        crops = [
            make(size, data.crop_area, data.flip, self.seed, step, indices, purpose) for purpose in CROPS[: self.views]
        ]
        return Part(step, indices, crops[0], broken, crops[1] if self.views == 2 else None)

    def _next_whole(self, index: int, broken: list[BrokenImage]) -> tuple[int, Tensor] | None:
        """The first image from `index` on that decodes; None when there is none in the whole set."""
        for candidate in range(index, index + len(self.images)):
            candidate %= len(self.images)
            if self.decoded is not None:
                image = self.decoded[candidate]
                if isinstance(image, Tensor):
                    return candidate, image
            elif candidate not in self._known_broken:
                try:
                    return candidate, self.images.load(candidate, self.least)
                except BrokenImage as error:
                    self._known_broken[candidate] = error
                    broken.append(error)
        return None


@lru_cache(maxsize=2)
def order_of_epoch(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " n"]:
    """The order in which an epoch of pretraining shows so many images, drawn once for all its steps."""
    return permutation(seed, "order", epoch, count)


def _decode_all(
    images: ImageSet, least: int, keep: Callable[[Tensor, int], Tensor] = lambda image, _: image
) -> list[Tensor | BrokenImage]:
    """`keep` of each image and its index, or why there is none; `least` px of the shorter side will do."""

    def some(start: int) -> list[Tensor | BrokenImage]:
        done: list[Tensor | BrokenImage] = []
        for index in range(start, min(start + CHUNK, len(images))):
            try:
                done.append(keep(images.load(index, least), index))
            except BrokenImage as error:
                done.append(error)
            distributed.advance()
        return done

    with ThreadPoolExecutor(devices.cores()) as threads:
        return [image for part in threads.map(some, range(0, len(images), CHUNK)) for image in part]


def _decode_squared(images: ImageSet, size: int) -> list[Tensor | BrokenImage]:
    return _decode_all(images, size, lambda image, _: center(image, size).contiguous())


def load_all(images: ImageSet, size: int) -> tuple[UInt8[Tensor, "n 3 {size} {size}"], Int64[np.ndarray, " n"]]:
    """Every image, squared by `center`, and the indices kept: broken ones are skipped and named.

    Raises UserError when none is left.
    """
    whole, kept = readable(images, _decode_squared(images, size))
    return torch.stack(whole), kept


def load_chunks(
    images: ImageSet, size: int, at_once: int
) -> Iterator[tuple[UInt8[Tensor, "n 3 {size} {size}"], Int64[np.ndarray, " n"]]]:
    """`load_all` of `at_once` images after another; a chunk of broken ones alone is passed over.

    Raises UserError at the end when no image at all could be decoded.
    """
    any_image, broken = False, []
    for start in range(0, len(images), at_once):
        rows = np.arange(start, min(len(images), start + at_once))
        decoded = _decode_squared(Subset(images, rows), size)
        whole, kept = without_broken(decoded)
        broken = broken or decoded
        if whole:
            any_image = True
            yield torch.stack(whole), rows[kept]
    if not any_image:
        raise NothingReadable(none_left(images, broken))


def load_with_crops(
    images: ImageSet, size: int, area: tuple[float, float], seed: int, numbers: Int64[np.ndarray, " m"]
) -> tuple[UInt8[Tensor, "n 3 {size} {size}"], UInt8[Tensor, "n 3 {size} {size}"], Int64[np.ndarray, " n"]]:
    """Every image squared by `center`, a random crop of it that may be mirrored, and the indices kept as in `load_all`.

    The crop of an image is drawn by seed and its entry in `numbers`. Raises UserError when no image is left.
    """

    def both(image: Tensor, index: int) -> Tensor:
        crop = random_crops([image], size, area, 0.5, seed, 0, numbers[index : index + 1], "query")[0]
        return torch.stack([center(image, size), crop])

    pairs, kept = readable(images, _decode_all(images, least_side(size, area), both))
    whole, crops = torch.stack(pairs).unbind(1)
    return whole.contiguous(), crops.contiguous(), kept


def load_whole(
    images: ImageSet, rows: Int64[np.ndarray, " n"], least: int
) -> tuple[list[Tensor], Int64[np.ndarray, " k"]]:
    """Some images, not squared, and which of the rows they are: broken ones are skipped and named.

    `least` px of the shorter side will do."""
    whole, kept = without_broken(_decode_all(Subset(images, rows), least))
    return whole, rows[kept]


def load_pairs(
    images: ImageSet, data: config.Data, seed: int, step: int
) -> tuple[UInt8[Tensor, "n 3 s s"], UInt8[Tensor, "n 3 s s"], Int64[np.ndarray, " n"]]:
    """Two independent random crops of every image, as `Loader` makes them, and the indices kept, as `load_all` does.

    Raises UserError when none is left.
    """
    whole, kept = readable(images, _decode_all(images, least_side(data.image_size, data.crop_area)))
    first, second = (
        random_crops(whole, data.image_size, data.crop_area, data.flip, seed, step, kept, purpose) for purpose in CROPS
    )
    return first, second, kept


def load_one(path: str, size: int) -> UInt8[Tensor, "1 3 {size} {size}"]:
    """The one image a path names, squared by `center`. Raises UserError when it names none, or several."""
    if not memory.is_memory(path) and not Path(path).expanduser().exists():
        raise UserError(f"There is no image '{path}'; give one image file.")
    opened = open_pictures(path, size)
    if len(opened) != 1:
        raise UserError(f"{path} holds {len(opened)} images; give one image file.")
    return load_all(opened, size)[0]


def decoded_bytes(images: ImageSet, least: int = 0) -> int:
    """Estimated size of all images as `load` decodes them, from the headers of 64 of them."""
    sizes = []
    for index in np.unique(np.linspace(0, len(images) - 1, 64).astype(int)):
        try:
            height, width = images.dimensions(int(index), least)
        except BrokenImage:
            continue  # it is named when it is decoded
        sizes.append(3 * height * width)
    return int(np.mean(sizes) * len(images)) if sizes else 0
