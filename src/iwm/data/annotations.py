"""A path is a segmentation data set: images, each with the class of every pixel. A source is a folder or .zip with
images and lossless masks of the same names in every split (`iwm.data.layout` has the folders' names), an .npz with
`images` and `masks`, or `sample-objects` (background and the drawn objects). The classes are the values that occur in
the masks (`iwm.data.mask_values`); names come from a `classes.txt`, one a line in order of the values, or from the
array `classes`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int16, Int32, Int64, UInt8
from torch import Tensor

from iwm.data import file_index, memory, samples, sources
from iwm.data.arrays import class_names, read_arrays, require_one_name_each
from iwm.data.decode import BrokenImage
from iwm.data.image_sets import Arrays, Files, ImageSet, Subset
from iwm.data.layout import INSTANCES, Named, mask_key, parts_of, read_layout
from iwm.data.loader import decoded_bytes
from iwm.data.mask_values import Mask, ValueTable, count_values, decode_mask, require_pixels, value_table
from iwm.runtime import devices
from iwm.runtime.console import console, progress
from iwm.runtime.errors import UserError

Pair = tuple[UInt8[Tensor, "3 h w"], Int32[Tensor, "h w"]]
"""An image and the values of its mask."""

LARGEST = 2**31 - 1
"""Largest value a mask may hold."""
LAYOUT = "images/ and annotations/ (a PNG of the same name for every image, its pixel values the classes)"


@dataclass(frozen=True)
class Annotated:
    """One split of a segmentation source: images, and a function that reads the mask of each."""

    images: ImageSet
    mask: Callable[[int], Mask]
    """Raw values of one mask. Raises BrokenImage when it cannot be decoded, UserError when it is none."""
    mask_path: Callable[[int], str]
    """A name of the mask that a person can find it by."""
    names: tuple[str, ...] | None
    """Of the values 0, 1, ...; None where nothing names them."""

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: Int64[np.ndarray, " m"], split: str) -> "Annotated":
        """Some of the images."""
        return Annotated(
            Subset(self.images, rows, split),
            lambda index: self.mask(int(rows[index])),
            lambda index: self.mask_path(int(rows[index])),
            self.names,
        )

    def load(self, index: int) -> Pair:
        """Image and raw values. Raises BrokenImage; UserError when the two differ in size or a value is negative."""
        image, mask = self.images.load(index), self.mask(index)
        if image.shape[1:] != mask.shape:
            raise UserError(
                f"The mask {self.mask_path(index)} is {mask.shape[1]} x {mask.shape[0]} px and its image "
                f"{image.shape[2]} x {image.shape[1]}; every pixel needs its class, so make them the same size."
            )
        if mask.size and (mask.min() < 0 or mask.max() > LARGEST):
            wrong = int(mask.min() if mask.min() < 0 else mask.max())
            raise UserError(
                f"The mask {self.mask_path(index)} holds the value {wrong}; classes are 0 to {LARGEST}, so correct it."
            )
        return image, torch.from_numpy(mask.astype(np.int32))


# ---- sources -------------------------------------------------------------------------------------------------------


def open_annotated(source: str, size: int) -> tuple[Annotated, Annotated | None, str]:
    """Training and validation split of a source (None when it has only one), and in words how it has them.

    `size` is the side of generated scenes. Raises UserError, also when there are no masks.
    """
    if source == "sample-objects":
        train, valid, how = sources.open_splits(source, size=size)
        return _scenes(train, size), _scenes(valid, size), how
    if source == "sample":
        raise UserError(f"The photos of `sample` have no masks; give `sample-objects`, or yours as {LAYOUT}.")
    if memory.is_memory(source):
        raise UserError("Masks are read from files; give a folder, or an .npz with `images` and `masks`.")
    path, name = file_index.locate(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _open_arrays(path, name)
    names_below = file_index.file_names(path)
    paths = file_index.pictures_among(path, names_below)
    layout = read_layout(path, paths)
    for sentence in layout.notes:
        file_index.note(name, sentence)
    names = _class_names(path, names_below)
    train = _paired(path, name, "train", (layout.train, layout.train_masks), names)
    valid = None
    if layout.val is not None:
        valid = _paired(path, name, "val", (layout.val, layout.val_masks), names)
    ranges = sources.grey_ranges(path, name, names_below, [item for item, _ in (*layout.train, *(layout.val or ()))])
    for part in (train, valid):
        if part is not None and isinstance(part.images, Files):
            part.images.ranges = ranges
    return train, valid, layout.how


def _scenes(scenes: ImageSet, size: int) -> Annotated:
    def mask(index: int) -> Mask:
        scene = samples.scene(scenes.split, index, size)
        return scene.mask.astype(np.int64) * (scene.label + 1)

    assert scenes.classes is not None
    return Annotated(scenes, mask, lambda index: f"of {scenes.path(index)}", ("background", *scenes.classes))


def _open_arrays(path: Path, name: str) -> tuple[Annotated, Annotated | None, str]:
    arrays = read_arrays(path)
    names = class_names(arrays, path)

    def half(prefix: str, split: str) -> Annotated:
        shown, masks = arrays[f"{prefix}images"], arrays.get(f"{prefix}masks")
        if masks is None:
            raise UserError(f"'{path}' has no array `{prefix}masks`; save whole numbers [n, h, w] under that name.")
        if masks.ndim == 4 and masks.shape[3] == 1:
            masks = masks[..., 0]
        if masks.dtype.kind not in "biu" or masks.shape != shown.shape[:3]:
            raise UserError(
                f"`{prefix}masks` in '{path}' is {masks.dtype} {list(masks.shape)}; it must be whole numbers "
                f"{list(shown.shape[:3])}, the class of every pixel of `{prefix}images`."
            )
        pictures = Arrays(shown, name, split, f"{path}:{prefix}images")
        return Annotated(
            pictures, lambda index: masks[index].astype(np.int64), lambda index: f"{path}:{prefix}masks[{index}]", names
        )

    if "val_images" not in arrays:
        return half("", "train"), None, "images"
    return half("", "train"), half("val_", "val"), "images and val_images"


def _class_names(root: Path, below: Sequence[str]) -> tuple[str, ...] | None:
    """The lines of the uppermost `classes.txt`, or None."""
    file = file_index.uppermost(below, "classes.txt")
    if file is None:
        return None
    text = Files(root, [file], "", "").read(0).decode("utf-8-sig", errors="replace")
    names = tuple(line.strip() for line in text.strip().splitlines())
    require_one_name_each(names, f"{root / file} must name every class once, one a line")
    return names


def _paired(
    root: Path, name: str, split: str, files: tuple[Sequence[Named], Sequence[Named]], names: tuple[str, ...] | None
) -> Annotated:
    """Images and masks of one split, by name."""

    def by_key(named: Sequence[Named], *, is_mask: bool) -> dict[str, str]:
        found: dict[str, str] = {}
        for path, parts in named:
            other = found.setdefault(mask_key(parts, is_mask=is_mask), path)
            if other != path:
                what = "two masks for one image" if is_mask else "two images for one mask"
                raise UserError(f"'{name}' ({split}) has {what}, {other} and {path}; take one of them out.")
        return found

    of_classes = [one for one in files[1] if not any(part.lower() in INSTANCES for part in parts_of(one[0]))]
    pictures, masks = by_key(files[0], is_mask=False), by_key(of_classes, is_mask=True)
    if not masks:
        raise UserError(f"'{root}' ({split}) has no masks; lay every split out as {LAYOUT}, or give an .npz with both.")
    lacking = [path for key, path in pictures.items() if key not in masks]
    if lacking:
        raise UserError(
            f"{len(lacking)} of the {len(pictures)} images of '{name}' ({split}) have no mask, e.g. {lacking[0]}; "
            f"lay them out as {LAYOUT}, or take those images out."
        )
    alone = [path for key, path in masks.items() if key not in pictures]
    if alone:
        console.print(f"{len(alone)} masks of {name} ({split}) have no image and are left out, e.g. {alone[0]}.")
    images = Files(root, list(pictures.values()), name, split)
    annotations = Files(root, [masks[key] for key in pictures], name, split)
    return Annotated(
        images, lambda index: decode_mask(annotations.read(index), annotations.path(index)), annotations.path, names
    )


# ---- splits, checked -----------------------------------------------------------------------------------------------


class Examples:
    """The readable images of a split with their masks; decoded once and kept where memory allows.

    Raises UserError when none can be decoded, and what `Annotated.load` raises.
    """

    def __init__(self, source: Annotated) -> None:
        self.source = source
        self.name, self.split = source.images.name, source.images.split
        keep = decoded_bytes(source.images) / 3 * 7 < devices.free_memory() / 4
        self.table: ValueTable | None = None
        """What the values mean; to be set before the first `load`."""
        self.values: dict[int, int] = {}
        """Pixels of every value that occurs."""
        self._first: dict[int, int] = {}
        rows: list[int] = []
        decoded: list[Pair] = []
        shorter: list[int] = []
        for row, pair in enumerate(self._read_all()):
            if isinstance(pair, BrokenImage):
                console.print(f"[yellow]Skipped a broken image: {pair}")
                continue
            for value, pixels in count_values(pair[1].numpy()).items():
                self.values[value] = self.values.get(value, 0) + pixels
                self._first.setdefault(value, row)
            rows.append(row)
            shorter.append(min(pair[1].shape))
            if keep:
                decoded.append(pair)
        if not rows:
            raise UserError(f"Not one image of '{self.name}' ({self.split}) can be decoded with its mask; check them.")
        self.rows = rows
        self.shorter = int(np.median(shorter))
        """Median of the images' shorter sides, px."""
        self._decoded = decoded if keep else None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pixels(self) -> Int64[np.ndarray, " c"]:
        """Pixels of every class."""
        assert self.table is not None
        return np.array([self.values.get(value, 0) for value in self.table.values], dtype=np.int64)

    def load(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], Int16[Tensor, "h w"]]:
        """Image and classes of one example."""
        assert self.table is not None
        image, mask = self._decoded[index] if self._decoded is not None else self._again(index)
        return image, self.table.classes_of(mask)

    def _again(self, index: int) -> Pair:
        try:
            return self.source.load(self.rows[index])
        except BrokenImage as error:
            raise UserError(
                f"An image could be read before and cannot now ({error}); is its disk still there?"
            ) from None

    def path(self, index: int) -> str:
        return self.source.images.path(self.rows[index])

    def mask_with(self, value: int) -> str:
        """The path of the first mask that holds a value."""
        return self.source.mask_path(self._first[value])

    def _read_all(self) -> Iterator[Pair | BrokenImage]:
        def read(index: int) -> Pair | BrokenImage:
            try:
                return self.source.load(index)
            except BrokenImage as error:
                return error

        with ThreadPoolExecutor(devices.cores()) as threads, progress("images") as bar:
            task = bar.add_task(f"reading {self.name} ({self.split})", total=len(self.source), note="")
            at_once = 64
            for start in range(0, len(self.source), at_once):
                for pair in threads.map(read, range(start, min(start + at_once, len(self.source)))):
                    bar.advance(task)
                    yield pair


@dataclass(frozen=True)
class AnnotatedSplits:
    """A segmentation source, checked: every class has training pixels and nothing is asked that was never shown."""

    train: Examples
    val: Examples
    classes: tuple[str, ...]
    named: bool
    """Whether the names are the source's own and no mere values."""
    sentence: str
    """Where the splits come from."""

    @property
    def majority(self) -> int:
        """The class with most training pixels."""
        return int(self.train.pixels.argmax())


def annotated_splits(data: str, val: str = "", *, ignore_index: int = 255, size: int = 64) -> AnnotatedSplits:
    """Open a segmentation source and look through all of its masks; `val` names another source for validation. Of a
    source with one split the tenth is held out that pretraining leaves alone.

    Raises UserError without masks, when sizes differ, for values that are no class, with one class only, and when a
    class has no training pixel.
    """
    train, valid, how = open_annotated(data, size)
    if val:
        only, asked, _ = open_annotated(val, size)
        if asked is None:
            sources.require_others([val], [data])
        valid = only if asked is None else asked
        how = f"{train.images.name} for training, {valid.images.name} for validation"
        if train.names != valid.names:
            raise UserError(f"{data} and {val} name their classes differently; give both the same classes.txt.")
    elif valid is None:
        rest, tenth = _held_out(data, train, size)
        train, valid = train.part(rest, "train"), train.part(tenth, "val")
        how = "a seeded tenth (seed 0) held out"
    shown, asked_of = Examples(train), Examples(valid)
    table = value_table(train.names, shown, asked_of, ignore_index)
    shown.table = asked_of.table = table
    require_pixels(table, shown, asked_of)
    where = f"{train.images.name}: " if not val else ""
    return AnnotatedSplits(shown, asked_of, table.names, train.names is not None, where + how)


def _held_out(data: str, annotated: Annotated, size: int) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " t"]]:
    """The other images and those that pretraining on the source leaves alone, whatever classes its folders or labels
    make of it and whatever else it holds."""
    with file_index.unsaid():  # that masks are no pictures of pretraining
        kept = sources.open_images(data, "val", size=size)
    names = {kept.path(index) for index in range(len(kept))}
    unseen = np.array([annotated.images.path(index) in names for index in range(len(annotated))])
    if unseen.all() or not unseen.any():
        raise UserError(
            f"'{annotated.images.name}' has too few images with masks ({len(annotated)}) to hold out those that "
            "pretraining leaves alone; add images, or give a validation set by --val."
        )
    return np.flatnonzero(~unseen), np.flatnonzero(unseen)
