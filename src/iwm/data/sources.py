"""A path is a dataset: open a source of images, of which each is decoded when asked for. A source is a folder, a .zip,
an .npz, `sample`, `sample-objects`, or several of them separated by commas; class folders are labels; `train/` and
`val/` (or `test/`) folders are its splits, else a seeded tenth is held out.
"""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iwm.data import file_index
from iwm.data.decode import reason
from iwm.data.image_sets import Arrays, Files, ImageSet, _Mix, _Photos, _Scenes, require_labels
from iwm.data.splits import hold_out_images
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.runtime.fields import as_text

EMBEDDED = ("sample", "sample-objects")
"""Sources that come with the package."""


def open_images(
    source: str | os.PathLike[str], split: str = "train", *, seed: int = 0, size: int | None = None
) -> ImageSet:
    """Open one split of a source.

    "train": the source's train/, else all but a seeded tenth, which pretraining and evaluation alike leave for
    measuring; "val": its val/ or test/, else that tenth; "all": both together.
    `size` is the side at which generated scenes are drawn (64 by default); `seed` draws the tenth and nothing else, the
    scenes are the same for every seed. Raises UserError.
    """
    if split not in ("train", "val", "all"):
        raise UserError(f"There is no split '{split}'; use train, val or all.")
    members = []
    for part in _parts(as_text(source)):
        train, valid, _ = _open_one(part, size or 64)
        if valid is None and split != "all":
            train, valid = hold_out_images(train, seed)
        chosen = {"train": [train], "val": [valid], "all": [train, valid]}[split]
        members.append(_join([member for member in chosen if member is not None], split))
    return _join(members, split)


def open_pictures(source: str, size: int | None = None) -> ImageSet:
    """Every image of a source whatever its folders are called, or a single image file. Raises UserError."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in file_index.SUFFIXES:
        return Files(path.parent, [path.name], path.stem, "all")
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        name = path.resolve().name if path.is_dir() else path.stem
        return Files(path, file_index.pictures_among(path, file_index.file_names(path)), name, "all")
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
            train, valid = hold_out_images(train, seed)
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


@dataclass(frozen=True)
class LabelledSplits:
    """A labelled source, checked: both splits have the same classes and nothing is asked that was never shown."""

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    sentence: str
    """Where the splits come from."""


def labelled_splits(data: str, val: str = "", *, size: int | None = None) -> LabelledSplits:
    """Open a classification source. Raises UserError without labels, with one class only, when the class sets of the
    splits differ, and when a class has no training image."""
    if size is not None and size < 1:
        raise UserError(f"--size {size} is no side of a picture; give 1 px or more, or 0 for the run's own.")
    train, test, sentence = open_splits(data, val, size=size)
    classes, labels = require_labels(train)
    _, truth = require_labels(test)
    shown = np.unique(labels)
    if len(shown) < 2:
        raise UserError(
            f"{data} has one class only ('{classes[shown[0]]}') to train on; a classifier needs two or more."
        )
    missing = np.setdiff1d(truth, labels)
    if len(missing):
        raise UserError(
            f"Class '{classes[missing[0]]}' of {data} has no training image; add some or take it out of validation."
        )
    return LabelledSplits(train, test, classes, sentence)


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
    path, name = file_index.locate(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return _open_arrays(path, name)
    return _open_files(path, name, file_index.file_names(path))


def _open_files(root: Path, name: str, names: Sequence[str]) -> tuple[ImageSet, ImageSet | None, str]:
    """Find splits and classes in the paths below `root`."""
    train, valid, how = file_index.split_files(root, names)
    return _labelled(root, name, "train", train), _labelled(root, name, "val", valid) if valid else None, how


def _labelled(root: Path, name: str, split: str, files: Sequence[file_index.Named]) -> ImageSet:
    tops = {parts[0].lower() for _, parts in files if len(parts) > 1}
    if tops == {
        file_index.IMAGES,
        file_index.MASKS,
    }:  # a segmentation source: its masks are neither pictures nor a class
        files = [
            (path, parts[1:2]) for path, parts in files if len(parts) > 1 and parts[0].lower() == file_index.IMAGES
        ]
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
