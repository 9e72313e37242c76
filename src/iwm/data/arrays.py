"""An .npz as a source: `images`, and if you like `labels`, `classes`, `masks`, `val_images`, `val_labels`, `val_masks`.

The names of Keras (x_train, y_train, x_test, y_test) and MedMNIST (train_images, train_labels, ...) are read too.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from iwm.data import file_index
from iwm.data.decode import reason
from iwm.data.image_sets import UNLABELLED, Arrays, ImageSet
from iwm.runtime.errors import UserError

Labels = tuple[Int64[np.ndarray, " n"], tuple[str, ...]]
"""Of every image its place among the names, and the names."""
NAMES = {
    "images": ("train_images", "x_train", "X_train"),
    "labels": ("train_labels", "y_train"),
    "masks": ("train_masks",),
    "val_images": ("x_val", "X_val", "test_images", "x_test", "X_test"),
    "val_labels": ("y_val", "test_labels", "y_test"),
    "val_masks": ("test_masks",),
}
"""Our names of arrays, and others' for them; of several the first is taken."""
IMAGES = "images uint8 [n, h, w, 3], or grey [n, h, w]"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz under our names, `images` and `val_images` as uint8 [n, h, w, 3].

    Raises UserError.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a readable .npz of plain arrays ({reason(error)}); save it again.") from error
    arrays = _under_our_names(path, arrays)
    if "images" not in arrays:
        has = f" (it has {', '.join(arrays) or 'no array'})"
        raise UserError(f"'{path}' has no array `images`{has}; save {IMAGES} under that name.")
    for key in ("images", "val_images"):
        if key in arrays:
            arrays[key] = _colours(arrays[key], f"`{key}` in '{path}'")
    return arrays


def _under_our_names(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed, taken = {}, set()
    for ours, others in NAMES.items():
        present = [name for name in (ours, *others) if name in arrays]
        if ours.startswith("val_") and ours != "val_images" and present:  # labels of the very images that are taken
            source = next((name for name in ("val_images", *NAMES["val_images"]) if name in arrays), "")
            prefix = "val" if "val" in source else "test"
            present = [name for name in present if prefix in name]
        if present:
            renamed[ours] = arrays[present[0]]
            taken.add(present[0])
    rest = {name: array for name, array in arrays.items() if name not in taken and name not in renamed}
    pictures = [f"`{name}` ({len(array):,})" for name, array in rest.items() if name in NAMES["val_images"]]
    if pictures:
        file_index.note(path.stem, f"{', '.join(pictures)} are left out, for validation has images of its own.")
    return renamed | rest


def _colours(images: Shaped[np.ndarray, "..."], where: str) -> UInt8[np.ndarray, "n h w 3"]:
    """One channel as three alike, transparency on white. Raises UserError for other types and shapes."""
    what = f"{where} is {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8:
        raise UserError(f"{what}; scale the values to 0..255 and save {IMAGES}.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        raise UserError(f"{what}; move the channels to the end (transpose(0, 2, 3, 1)) and save {IMAGES}.")
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or not images.size:
        raise UserError(f"{what}; save {IMAGES} (of more channels choose three).")
    if images.shape[3] == 1:
        return np.repeat(images, 3, axis=3)
    if images.shape[3] == 4:
        alpha = images[..., 3:].astype(np.uint16)
        return ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return images


def open_arrays(path: Path, name: str) -> tuple[ImageSet, ImageSet | None, str]:
    """Training and validation images of an .npz (None when it has one array only), and in words how it has them.

    Classes are `classes`, else the labels that occur. Raises UserError.
    """
    arrays = read_arrays(path)
    prefixes = ("", "val_") if "val_images" in arrays else ("",)
    labels = {
        prefix: plain_labels(arrays[f"{prefix}labels"], len(arrays[f"{prefix}images"]), f"`{prefix}labels` in '{path}'")
        for prefix in prefixes
        if f"{prefix}labels" in arrays
    }
    names = class_names(arrays, path)
    numbered = number_labels(labels, names, f"`labels` in '{path}'")
    sets = []
    for prefix, split in zip(prefixes, ("train", "val"), strict=False):
        opened = Arrays(arrays[f"{prefix}images"], name, split, f"{path}:{prefix}images")
        if prefix in numbered:
            opened.labels, opened.classes = numbered[prefix]
        sets.append(opened)
    if len(sets) == 1:
        return sets[0], None, "images"
    return sets[0], sets[1], "images and val_images"


def class_names(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[str, ...] | None:
    """The names of an .npz's classes, where it has an array `classes`. Raises UserError where they are no names."""
    if "classes" not in arrays:
        return None
    names = tuple(arrays["classes"].astype(str).ravel().tolist())
    require_one_name_each(names, f"`classes` in '{path}' must name every class once")
    return names


def require_one_name_each(names: tuple[str, ...], rule: str) -> None:
    """Raises UserError with the rule where a class has no name, or that of another."""
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{rule}; correct it.")


def plain_labels(labels: Shaped[np.ndarray, "..."], count: int, where: str) -> np.ndarray:
    """Labels as [n] whole numbers or words. Raises UserError."""
    complaint = UserError(
        f"{where} is {labels.dtype} {list(labels.shape)}; give {count} whole numbers or words, one an image (-1 or an "
        "empty word for an image without a label)."
    )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.dtype.kind in "biuf" and np.isin(labels, (0, 1)).all():
        if not (labels.sum(axis=1) == 1).all():
            raise UserError(f"{where} marks several classes or none for an image; give one class an image.")
        labels = labels.argmax(axis=1)
    if labels.shape != (count,):
        raise complaint
    if labels.dtype.kind in "SU":
        return np.char.strip(labels.astype(str))
    if labels.dtype.kind == "f":
        whole = np.where(np.isnan(labels), UNLABELLED, labels)
        if not (whole == np.round(whole)).all():
            raise complaint
        labels = whole
    elif labels.dtype.kind not in "biu":
        raise complaint
    labels = labels.astype(np.int64)
    if (labels < UNLABELLED).any():
        raise UserError(f"{where} holds {labels.min()}; labels are 0 or more, or -1 for an image without one.")
    return labels


def number_labels(labels: dict[str, np.ndarray], names: tuple[str, ...] | None, where: str) -> dict[str, Labels]:
    """Every split's labels as places among the classes, which are `names` or the values that occur.

    Raises UserError when a label has no name.
    """
    if not labels:
        return {}
    if len({array.dtype.kind for array in labels.values()}) > 1:
        raise UserError(f"{where} are words in one split and numbers in the other; give the same in both.")
    values = np.unique(np.concatenate(list(labels.values())))
    words = values.dtype.kind == "U"
    values = values[values != ""] if words else values[values != UNLABELLED]
    if names is not None and not words:
        if len(values) and values.max() >= len(names):
            raise UserError(
                f"{where} holds {values.max()}, but `classes` names {len(names)} of them, 0 to {len(names) - 1}; count "
                "labels from 0, or leave `classes` out."
            )
        return {prefix: (array, names) for prefix, array in labels.items()}
    known = tuple(str(value) for value in values)
    if names is not None:
        if strange := [word for word in known if word not in names]:
            raise UserError(f"{where} holds '{strange[0]}', which is not among `classes`; correct one of them.")
        places = {name: index for index, name in enumerate(names)}
        return {
            prefix: (np.array([places.get(word, UNLABELLED) for word in array.tolist()], dtype=np.int64), names)
            for prefix, array in labels.items()
        }
    if not known:
        return {}
    return {
        prefix: (np.where(np.isin(array, values), np.searchsorted(values, array), UNLABELLED), known)
        for prefix, array in labels.items()
    }
