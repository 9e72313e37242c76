"""A path is a segmentation data set: images, each with the class of every pixel. A source is a folder or .zip with
`images/` and `annotations/` in every split (PNG masks of the same names, a pixel's value is its class; ADE20K's own
order, images/training/, is understood), an .npz with `images` and `masks`, or `sample-objects` (background and the
drawn objects). Names of the classes come from a `classes.txt`, one a line in order of the values, or from the array
`classes`.

    class = value                     where value < ignore index
    class = value - 1                 where value > ignore index
    class = IGNORED                   where value = ignore index: neither learned nor counted
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Int16, Int64, Integer, UInt8
from PIL import Image
from torch import Tensor

from iwm.data import file_index, samples, sources, splits
from iwm.data.crops import IGNORED
from iwm.data.decode import BrokenImage, reason
from iwm.data.image_sets import Arrays, Files, ImageSet, Subset
from iwm.data.loader import decoded_bytes
from iwm.runtime import devices
from iwm.runtime.console import console, progress
from iwm.runtime.errors import UserError

Mask = Integer[np.ndarray, "h w"]
Pair = tuple[UInt8[Tensor, "3 h w"], Int16[Tensor, "h w"]]
"""An image and the classes of its pixels."""

LARGEST = 2**15 - 1
"""Largest value a mask may hold, beside the ignore index."""
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

    def load(self, index: int, ignore_index: int) -> Pair:
        """Image and classes. Raises BrokenImage; UserError when the two differ in size or a value is no class."""
        image, mask = self.images.load(index), self.mask(index)
        if image.shape[1:] != mask.shape:
            raise UserError(
                f"The mask {self.mask_path(index)} is {mask.shape[1]} x {mask.shape[0]} px and its image "
                f"{image.shape[2]} x {image.shape[1]}; every pixel needs its class, so make them the same size."
            )
        ignored = mask == ignore_index
        values = mask[~ignored]
        top = len(self.names) - 1 if self.names else LARGEST
        if values.size and (values.min() < 0 or values.max() > top):
            wrong = int(values.min() if values.min() < 0 else values.max())
            known = f"there are {len(self.names)} classes, 0 to {top}" if self.names else f"classes are 0 to {top}"
            raise UserError(
                f"The mask {self.mask_path(index)} holds the value {wrong}, but {known}; correct the mask or the "
                f"class names, or leave those pixels out with --ignore-index {wrong}."
            )
        classes = mask.astype(np.int64)
        classes -= (classes > ignore_index) & (ignore_index >= 0)
        classes[ignored] = IGNORED
        return image, torch.from_numpy(classes.astype(np.int16))


# ---- sources -------------------------------------------------------------------------------------------------------


def open_annotated(source: str, size: int) -> tuple[Annotated, Annotated | None, str]:
    """Training and validation split of a source (None when it has only one), and in words how it has them.

    `size` is the side of generated scenes. Raises UserError, also when there are no masks.
    """
    if source == "sample-objects":
        train, valid, how = sources.open_splits(source, size=size)
        return _scenes(train, size), _scenes(valid, size), how
    path, name = file_index.locate(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _open_arrays(path, name)
    names_below = file_index.file_names(path)
    train, valid, how = file_index.split_files(path, names_below)
    names = _class_names(path, names_below)
    return (
        _paired(path, name, "train", train, names),
        None if valid is None else _paired(path, name, "val", valid, names),
        how,
    )


def _scenes(scenes: ImageSet, size: int) -> Annotated:
    def mask(index: int) -> Mask:
        scene = samples.scene(scenes.split, index, size)
        return scene.mask.astype(np.int64) * (scene.label + 1)

    assert scenes.classes is not None
    return Annotated(scenes, mask, lambda index: f"of {scenes.path(index)}", ("background", *scenes.classes))


def _open_arrays(path: Path, name: str) -> tuple[Annotated, Annotated | None, str]:
    arrays = sources.read_arrays(path)
    names = tuple(arrays["classes"].astype(str).tolist()) if "classes" in arrays else None

    def half(prefix: str, split: str) -> Annotated:
        shown, masks = arrays[f"{prefix}images"], arrays.get(f"{prefix}masks")
        if masks is None:
            raise UserError(f"'{path}' has no array `{prefix}masks`; save whole numbers [n, h, w] under that name.")
        if masks.dtype.kind not in "iu" or masks.shape != shown.shape[:3]:
            raise UserError(
                f"`{prefix}masks` in '{path}' is {masks.dtype} {list(masks.shape)}; it must be whole numbers "
                f"{list(shown.shape[:3])}, the class of every pixel of `{prefix}images`."
            )
        pictures = Arrays(shown, name, split, f"{path}:{prefix}images")
        return Annotated(pictures, lambda index: masks[index], lambda index: f"{path}:{prefix}masks[{index}]", names)

    if "val_images" not in arrays:
        return half("", "train"), None, "images"
    return half("", "train"), half("val_", "val"), "images and val_images"


def _class_names(root: Path, below: Sequence[str]) -> tuple[str, ...] | None:
    """The lines of the uppermost `classes.txt`, or None."""
    lists = sorted((name for name in below if PurePosixPath(name).name == "classes.txt"), key=lambda n: n.count("/"))
    if not lists:
        return None
    text = Files(root, lists[:1], "", "").read(0).decode("utf-8", errors="replace")
    names = tuple(line.strip() for line in text.strip().splitlines())
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{root / lists[0]} must name every class once, one a line; correct it.")
    return names


def _paired(
    root: Path, name: str, split: str, files: Sequence[file_index.Named], names: tuple[str, ...] | None
) -> Annotated:
    """Images and masks of one split, by name."""

    def below(folder: str) -> dict[str, str]:
        inside = [(path, parts) for path, parts in files if len(parts) > 1 and parts[0].lower() == folder]
        return {str(PurePosixPath(*parts[1:]).with_suffix("")): path for path, parts in inside}

    pictures, masks = below(file_index.IMAGES), below(file_index.MASKS)
    if not pictures or not masks:
        raise UserError(f"'{root}' ({split}) has no masks; lay every split out as {LAYOUT}, or give an .npz with both.")
    lacking = [path for stem, path in pictures.items() if stem not in masks]
    if lacking:
        raise UserError(
            f"{len(lacking)} of the {len(pictures)} images of '{name}' ({split}) have no mask, e.g. {lacking[0]}; "
            f"lay them out as {LAYOUT}, or take those images out."
        )
    alone = [path for stem, path in masks.items() if stem not in pictures]
    if alone:
        console.print(f"{len(alone)} masks of {name} ({split}) have no image and are left out, e.g. {alone[0]}.")
    shown = Files(root, list(pictures.values()), name, split)
    annotations = Files(root, [masks[stem] for stem in pictures], name, split)
    return Annotated(
        shown, lambda index: decode_mask(annotations.read(index), annotations.path(index)), annotations.path, names
    )


def decode_mask(data: bytes, name: str = "mask") -> Mask:
    """The values of a grey, palette or black-and-white PNG as they are stored.

    Raises BrokenImage when it cannot be decoded, UserError when it is not a PNG or is a colour picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind, mode, values = picture.format, picture.mode, np.asarray(picture)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise BrokenImage(name, reason(error)) from error
    if kind != "PNG":
        raise UserError(f"The mask {name} is a {kind} file, which may blur classes; save masks as PNG.")
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise UserError(f"The mask {name} is a colour picture ({mode}); save the classes as grey or palette values.")
    return values.astype(np.int64)


# ---- splits, checked -----------------------------------------------------------------------------------------------


class Examples:
    """The readable images of a split with their classes; decoded once and kept where memory allows.

    Raises UserError when none can be decoded, and what `Annotated.load` raises.
    """

    def __init__(self, source: Annotated, ignore_index: int) -> None:
        self.source, self.ignore_index = source, ignore_index
        self.name, self.split = source.images.name, source.images.split
        pixels = decoded_bytes(source.images) / 3
        keep = pixels * 5 < devices.free_memory() / 4
        self.pixels = np.zeros(0, dtype=np.int64)
        """Pixels of every class that occurs."""
        rows: list[int] = []
        decoded: list[Pair] = []
        shorter: list[int] = []
        for row, pair in enumerate(self._read_all()):
            if isinstance(pair, BrokenImage):
                console.print(f"[yellow]Skipped a broken image: {pair}")
                continue
            rows.append(row)
            shorter.append(min(pair[1].shape))
            pixel_counts = np.bincount(pair[1][pair[1] != IGNORED].numpy(), minlength=len(self.pixels))
            pixel_counts[: len(self.pixels)] += self.pixels
            self.pixels = pixel_counts
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

    def load(self, index: int) -> Pair:
        """Image and classes of one example."""
        if self._decoded is not None:
            return self._decoded[index]
        try:
            return self.source.load(self.rows[index], self.ignore_index)
        except BrokenImage as error:
            raise UserError(
                f"An image could be read before and cannot now ({error}); is its disk still there?"
            ) from None

    def path(self, index: int) -> str:
        return self.source.images.path(self.rows[index])

    def _read_all(self) -> Iterator[Pair | BrokenImage]:
        def read(index: int) -> Pair | BrokenImage:
            try:
                return self.source.load(index, self.ignore_index)
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
        rest, tenth = splits.hold_out_rows(len(train), train.images.name, seed=0)
        train, valid = train.part(rest, "train"), train.part(tenth, "val")
        how = "a seeded tenth (seed 0) held out"
    shown, asked_of = Examples(train, ignore_index), Examples(valid, ignore_index)
    classes = _classes_of(train.names, shown, asked_of, ignore_index)
    where = f"{train.images.name}: " if not val else ""
    return AnnotatedSplits(shown, asked_of, classes, train.names is not None, where + how)


def _classes_of(names: tuple[str, ...] | None, train: Examples, val: Examples, ignore_index: int) -> tuple[str, ...]:
    """Names of the classes, the ignored one left out. Raises UserError when they cannot be learned from `train`."""
    count = max(len(train.pixels), len(val.pixels))
    if names is None:
        values = range(count + 1 if 0 <= ignore_index <= count else count)
        names = tuple(map(str, values))
    classes = tuple(name for value, name in enumerate(names) if value != ignore_index)
    pixels, val_pixels = (np.pad(part.pixels, (0, len(classes) - len(part.pixels))) for part in (train, val))
    if (pixels > 0).sum() < 2:
        only = "".join(f" ('{classes[number]}')" for number in np.flatnonzero(pixels))
        raise UserError(
            f"The training masks of '{train.name}' hold one class only{only}, beside the ignored value {ignore_index}; "
            "two are needed. A foreground that is stored as that value needs --ignore-index -1 or another value."
        )
    strange = np.flatnonzero((pixels == 0) & (val_pixels > 0))
    if len(strange):
        raise UserError(
            f"Training and validation masks of '{train.name}' have different classes: "
            f"{', '.join(repr(classes[number]) for number in strange[:5])} only in validation; add training images of "
            "it, or take it out of validation."
        )
    absent = np.flatnonzero(pixels == 0)
    if len(absent):
        raise UserError(
            f"Class '{classes[absent[0]]}' of '{train.name}' has no training image; add some, or number the classes "
            "without it."
        )
    if not val_pixels.any():
        raise UserError(
            f"Every pixel of the validation masks of '{val.name}' holds the ignored value {ignore_index}; give masks "
            "with classes, or another --ignore-index."
        )
    unasked = np.flatnonzero(val_pixels == 0)
    if len(unasked):
        listed = ", ".join(classes[number] for number in unasked[:5]) + ", ..." * (len(unasked) > 5)
        console.print(f"{len(unasked)} of {len(classes)} classes occur in no validation mask: {listed}.")
    return classes
