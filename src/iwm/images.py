"""A path is a dataset: open a source of images, of which each is decoded when asked for. A source is a folder, a .zip,
an .npz, `sample`, `sample-objects`, or several of them separated by commas; class folders are labels; `train/` and
`val/` (or `test/`) folders are its splits, else a seeded tenth is held out.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from iwm import listing, samples
from iwm.pixels import BrokenImage, decode, reason
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation

EMBEDDED = ("sample", "sample-objects")
"""Sources that come with the package."""


class ImageSet:
    """One split of one source, or of a mix of several; a sequence of pictures that are decoded when asked for."""

    name: str
    """Short name used in result files, e.g. "cifar10"; those of a mix are joined with "+"."""
    split: str
    """"train", "val" or "all"."""
    classes: tuple[str, ...] | None = None
    labels: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Decode one image (a channels-last view, which resizes fastest). Raises BrokenImage."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        """A name of the picture that a person can find it by."""
        raise NotImplementedError

    def dimensions(self, index: int) -> tuple[int, int]:
        """Height and width without decoding. Raises BrokenImage."""
        raise NotImplementedError


class Files(ImageSet):
    """Image files of a folder or a zip archive."""

    def __init__(self, root: Path, names: Sequence[str], name: str, split: str):
        """`names` are the files' paths below `root` (inside the archive), with forward slashes."""
        self.root, self.names, self.name, self.split = root, list(names), name, split
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        return str(self.root / self.names[index])

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return decode(self.read(index), self.path(index))

    def dimensions(self, index: int) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(self.read(index))) as picture:
                return picture.height, picture.width
        except Exception as error:
            raise BrokenImage(self.path(index), reason(error)) from error

    def read(self, index: int) -> bytes:
        """The file itself. Raises BrokenImage."""
        try:
            if self.root.is_dir():
                return (self.root / self.names[index]).read_bytes()
            # A decoding process must not share its parent's file position.
            if self._archive is None or self._archive[0] != os.getpid():
                self._archive = os.getpid(), zipfile.ZipFile(self.root)
            return self._archive[1].read(self.names[index])
        except Exception as error:  # damaged archives raise a dozen unrelated types
            raise BrokenImage(self.path(index), reason(error)) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


class Arrays(ImageSet):
    """Images of one array."""

    def __init__(self, images: UInt8[np.ndarray, "n h w 3"], name: str, split: str, where: str):
        self.images, self.name, self.split, self.where = images, name, split, where

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(self.images[index].copy()).permute(2, 0, 1)

    def dimensions(self, index: int) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]


class _Photos(ImageSet):
    """The embedded photos, unlabelled."""

    def __init__(self, split: str):
        self.name, self.split = "sample", split
        self.names, self.pictures = samples.photos(split)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        return f"sample/{self.names[index]}"

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(np.array(self.pictures[index])).permute(2, 0, 1)

    def dimensions(self, index: int) -> tuple[int, int]:
        return self.pictures[index].height, self.pictures[index].width


class _Scenes(ImageSet):
    """Generated scenes of one object on a photo: always those of seed 0, as if they were files."""

    def __init__(self, split: str, size: int):
        self.name, self.split, self.size = "sample-objects", split, size
        self.classes, self.labels = tuple(samples.sprites()), samples.labels(split)

    def __len__(self) -> int:
        return samples.SCENES[self.split]

    def path(self, index: int) -> str:
        return f"sample-objects/{self.split}/{index}"

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(samples.scene(self.split, index, self.size).image).permute(2, 0, 1)

    def dimensions(self, index: int) -> tuple[int, int]:
        return self.size, self.size


class _Mix(ImageSet):
    """Several sets one after the other. Labels stay when all members have the same classes."""

    def __init__(self, members: Sequence[ImageSet], split: str):
        self.members, self.split = list(members), split
        self.name = "+".join(dict.fromkeys(member.name for member in members))
        self.ends = np.cumsum([len(member) for member in members])
        labels = [member.labels for member in members if member.labels is not None]
        if len(labels) == len(members) and len({member.classes for member in members}) == 1:
            self.classes, self.labels = members[0].classes, np.concatenate(labels)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _member(self, index: int) -> tuple[ImageSet, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.members[which], index - (int(self.ends[which - 1]) if which else 0)

    def path(self, index: int) -> str:
        member, within = self._member(index)
        return member.path(within)

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        member, within = self._member(index)
        return member.load(within)

    def dimensions(self, index: int) -> tuple[int, int]:
        member, within = self._member(index)
        return member.dimensions(within)


class Subset(ImageSet):
    """Some images of a set, in the given order."""

    def __init__(self, images: ImageSet, indices: Int64[np.ndarray, " m"], split: str | None = None):
        self.images, self.indices = images, indices
        self.name, self.split, self.classes = images.name, split or images.split, images.classes
        self.labels = None if images.labels is None else images.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, index: int) -> str:
        return self.images.path(int(self.indices[index]))

    def load(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return self.images.load(int(self.indices[index]))

    def dimensions(self, index: int) -> tuple[int, int]:
        return self.images.dimensions(int(self.indices[index]))


def open_images(source: str, split: str = "train", *, seed: int = 0, size: int | None = None) -> ImageSet:
    """Open one split of a source.

    "train": the source's train/, else all but a seeded tenth, which pretraining and evaluation alike leave for
    measuring; "val": its val/ or test/, else that tenth; "all": both together.
    `size` is the side at which generated scenes are drawn (64 by default); `seed` draws the tenth and nothing else, the
    scenes are the same for every seed. Raises UserError.
    """
    if split not in ("train", "val", "all"):
        raise UserError(f"There is no split '{split}'; use train, val or all.")
    members = []
    for part in _parts(source):
        train, valid, _ = _open_one(part, size or 64)
        if valid is None and split != "all":
            train, valid = _hold_out(train, seed)
        chosen = {"train": [train], "val": [valid], "all": [train, valid]}[split]
        members.append(_join([member for member in chosen if member is not None], split))
    return _join(members, split)


def open_pictures(source: str, size: int | None = None) -> ImageSet:
    """Every image of a source whatever its folders are called, or a single image file. Raises UserError."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in listing.SUFFIXES:
        return Files(path.parent, [path.name], path.stem, "all")
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        name = path.resolve().name if path.is_dir() else path.stem
        return Files(path, listing.pictures_among(path, listing.file_names(path)), name, "all")
    return open_images(source, "all", size=size)


def open_splits(
    source: str, val: str = "", *, seed: int = 0, size: int | None = None
) -> tuple[ImageSet, ImageSet, str]:
    """Training images, validation images, and in words how they were split (short names only, no paths).

    `val` names another source for validation: its own val/ or test/, else all of it. `seed` and `size` as in
    `open_images`. Raises UserError, also when the two have different classes.
    """
    trains, valids, how = [], [], []
    for part in _parts(source):
        train, valid, parted = _open_one(part, size or 64)
        if not val and valid is None:
            train, valid = _hold_out(train, seed)
            parted = f"a seeded tenth (seed {seed}) held out"
        how.append(f"{train.name}: {parted}")
        trains.append(train)
        valids.append(valid)
    if val:
        opened = [_open_one(part, size or 64) for part in _parts(val)]
        require_others([part for part, one in zip(_parts(val), opened, strict=True) if one[1] is None], _parts(source))
        valids = [train if valid is None else valid for train, valid, _ in opened]
    train, valid = _join(trains, "train"), _join(valids, "val")
    if val:
        how = [f"{train.name} for training, {valid.name} for validation"]
    if train.classes != valid.classes:
        raise UserError(_class_difference(train, valid))
    return train, valid, "; ".join(how)


def require_others(vals: Sequence[str], sources: Sequence[str]) -> None:
    """Raises UserError when one of `vals`, sources without a split of their own, is also trained on as a whole."""
    for val in vals:
        if source_identity(val) in map(source_identity, sources):
            raise UserError(
                f"--val {val} are the very images that are trained on; give others, or leave --val out and a tenth is "
                "held out."
            )


def source_identity(source: str) -> str:
    """How a data source is written down in settings: paths made absolute, names as they are."""
    return ",".join(
        str(Path(part).expanduser().resolve()) if part not in EMBEDDED and Path(part).expanduser().exists() else part
        for part in (part.strip() for part in source.split(","))
    )


def require_labels(images: ImageSet) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
    """Classes and labels of a set. Raises UserError when it has none."""
    if images.classes is None or images.labels is None:
        raise UserError(
            f"'{images.name}' has no labels; put the images of each class into a folder of its own (CLASS/image.jpg, "
            "two classes or more), or give an .npz with `images` and `labels`."
        )
    return images.classes, images.labels


def _parts(source: str) -> list[str]:
    """The sources of a comma-separated list; a path that has a comma in its name is one source."""
    one = "," not in source or Path(source).expanduser().exists()
    parts = [part.strip() for part in ([source] if one else source.split(",")) if part.strip()]
    if not parts:
        raise UserError("No images were named; give a folder, .zip, .npz, `sample` or `sample-objects`.")
    return parts


def _open_one(source: str, size: int) -> tuple[ImageSet, ImageSet | None, str]:
    """Training and validation images of one source (None when it has no validation split), and how it has them."""
    if source in EMBEDDED and Path(source).exists():
        console.print(f"[yellow]'{source}' are the embedded images; the folder of that name here is ./{source}.")
    if source == "sample":
        return _Photos("train"), _Photos("val"), "800 and 119 of the embedded photos"
    if source == "sample-objects":
        return _Scenes("train", size), _Scenes("val", size), "scenes on different photos"
    path, name = listing.locate(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _open_arrays(path, name)
    return _open_files(path, name, listing.file_names(path))


def _open_files(root: Path, name: str, names: Sequence[str]) -> tuple[ImageSet, ImageSet | None, str]:
    """Find splits and classes in the paths below `root`."""
    train, valid, how = listing.split_files(root, names)
    return _labelled(root, name, "train", train), _labelled(root, name, "val", valid) if valid else None, how


def _labelled(root: Path, name: str, split: str, files: Sequence[listing.Named]) -> ImageSet:
    tops = {parts[0].lower() for _, parts in files if len(parts) > 1}
    if tops == {listing.IMAGES, listing.MASKS}:  # a segmentation source: its masks are neither pictures nor a class
        files = [(path, parts[1:2]) for path, parts in files if len(parts) > 1 and parts[0].lower() == listing.IMAGES]
    images = Files(root, [path for path, _ in files], name, split)
    tops = [parts[0] if len(parts) > 1 else "" for _, parts in files]
    classes = tuple(sorted(set(tops)))
    if len(classes) > 1 and "" not in classes:
        number = {kind: index for index, kind in enumerate(classes)}
        images.classes, images.labels = classes, np.array([number[top] for top in tops], dtype=np.int64)
    return images


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, checked: `images` and, where there are any, `val_images` are uint8 [n, h, w, 3].

    Raises UserError.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a readable .npz of plain arrays ({reason(error)}); save it again.") from error
    if "images" not in arrays:
        raise UserError(f"'{path}' has no array `images`; save uint8 [n, h, w, 3] under that name.")
    for key in ("images", "val_images"):
        images = arrays.get(key)
        if images is not None and (
            images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size
        ):
            raise UserError(f"`{key}` in '{path}' is {images.dtype} {list(images.shape)}; save uint8 [n, h, w, 3].")
    return arrays


def _open_arrays(path: Path, name: str) -> tuple[ImageSet, ImageSet | None, str]:
    """An .npz with `images`, optional `labels`, `classes`, `val_images`, `val_labels`."""
    arrays = read_arrays(path)
    counts = [int(arrays[key].max()) + 1 for key in ("labels", "val_labels") if arrays.get(key, np.zeros(0)).size]
    classes = tuple(
        arrays["classes"].astype(str).tolist() if "classes" in arrays else map(str, range(max(counts or [0])))
    )

    def half(prefix: str, split: str) -> ImageSet:
        images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
        opened = Arrays(images, name, split, f"{path}:{prefix}images")
        if labels is not None:
            whole = labels.shape == (len(images),) and labels.dtype.kind in "iu"
            if not whole or labels.min() < 0 or labels.max() >= len(classes):
                raise UserError(
                    f"`{prefix}labels` in '{path}' must be {len(images)} whole numbers from 0 up to "
                    f"{len(classes) - 1}, one an image and each with a class; save them so."
                )
            opened.classes, opened.labels = classes, labels.astype(np.int64)
        return opened

    if "val_images" not in arrays:
        return half("", "train"), None, "images"
    return half("", "train"), half("val_", "val"), "images and val_images"


def _join(members: Sequence[ImageSet], split: str) -> ImageSet:
    return members[0] if len(members) == 1 else _Mix(members, split)


def _hold_out(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    rest, tenth = held_out(len(images), images.name, seed, images.labels)
    return Subset(images, rest, "train"), Subset(images, tenth, "val")


def held_out(
    count: int, name: str, seed: int, labels: Int64[np.ndarray, " n"] | None = None
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " t"]]:
    """The other nine tenths and a seeded tenth of a set's indices, the tenth drawn evenly from all classes.

    The only image of a class stays with the rest. Raises UserError when the set is a single image.
    """
    if count < 2:
        raise UserError(f"'{name}' holds a single image, too few to hold some out; add images.")
    order = permutation(seed, "held out", 0, count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        several = order[np.bincount(labels)[labels[order]] > 1]
        order = several if len(several) else order
    chosen = np.zeros(count, dtype=bool)
    chosen[order[4::10] if len(order) >= 10 else order[:1]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _class_difference(train: ImageSet, valid: ImageSet) -> str:
    if train.classes is None or valid.classes is None:
        with_, without = (train, valid) if valid.classes is None else (valid, train)
        return (
            f"'{with_.name}' ({with_.split}) has class folders or labels and '{without.name}' ({without.split}) has "
            "none; lay out both the same way."
        )
    lacking = [
        f"{', '.join(repr(kind) for kind in missing)} only in {where}"
        for where, missing in (
            ("training", [kind for kind in train.classes if kind not in valid.classes]),
            ("validation", [kind for kind in valid.classes if kind not in train.classes]),
        )
        if missing
    ]
    what = " and ".join(lacking) or "the same names in another order"
    return f"Training and validation images of '{train.name}' have different classes ({what}); make them agree."
