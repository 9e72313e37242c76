"""Images that a Python session holds, as a source: a PyTorch dataset, arrays, or a list of pictures or paths.

`source_of` puts them into a table under a text that settings and results hold in place of a path,

    memory:CONTENT/NAME          CONTENT: 16 hex digits of a hash of pixels, labels and splits

so that equal content is told from other content on resume, and whoever finds the text in a file knows what is missing.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from iwm.data.arrays import number_labels, plain_labels
from iwm.data.decode import BrokenImage, decode, reason, rgb
from iwm.data.image_sets import ImageSet
from iwm.data.layout import TRAIN, VAL
from iwm.runtime.errors import UserError

PREFIX = "memory:"
KINDS = (
    "a PyTorch dataset of (image, label), an array [n, h, w, 3] or [n, 3, h, w], a list of PIL images, arrays or paths"
)
CHECKED = 16
"""Images of a dataset that are read twice: random transforms are told from images that stay."""
Splits = tuple[ImageSet, ImageSet | None]

_HELD: dict[str, Splits] = {}
"""Training images and, where there are any, validation images of each source."""


def is_memory(source: str) -> bool:
    """Whether a source is named by `source_of`."""
    return source.startswith(PREFIX)


def content_of(source: str) -> str:
    """The hex digits of a source's content."""
    return source.removeprefix(PREFIX).split("/")[0]


def splits_of(source: str) -> Splits:
    """What was put in under this text. Raises UserError when this session holds no such images."""
    if source not in _HELD:
        name = source.split("/")[-1]
        raise UserError(
            f"'{name}' were images in the memory of a Python session (content {content_of(source)}) and lie in no "
            "file; from Python give them again, data=IMAGES, or give another source."
        )
    return _HELD[source]


@contextmanager
def held() -> Iterator[None]:
    """Forget at the end what is put in meanwhile: a session may hand over gigabytes many times."""
    before = dict(_HELD)
    try:
        yield
    finally:
        _HELD.clear()
        _HELD.update(before)


def source_of(images: Any, labels: Any = None, name: str = "") -> str:
    """Put images into the table; returns the text that stands for them.

    `images` is one of KINDS, a single picture, a pair of one of them and its labels, or a mapping of splits
    {"train": ..., "val": ...}. `labels` are whole numbers or texts, one an image. `name` is the short name in results;
    by default `memory-` and 8 hex digits of the content. Raises UserError for what is none of this, and for a dataset
    that gives another image when it is read again.
    """
    name = _checked_name(name)  # before anything is read
    if isinstance(images, Mapping) and not _is_one_item(images):
        parts = dict(zip(("train", "val"), _both_splits(images, labels), strict=True))
    else:
        parts = {"train": _set_of(images, labels)}
    mark = hashlib.sha256()
    for split, part in parts.items():
        part.split = split
        mark.update(f"{split} {len(part)} {part.classes}".encode())
        for one in part.marks or (part.mark_and_label(index)[0] for index in range(len(part))):
            mark.update(one)
        part.marks = []
        mark.update(b"" if part.labels is None else part.labels.tobytes())
    content = mark.hexdigest()[:16]
    for part in parts.values():
        part.name = name or f"memory-{content[:8]}"
    source = f"{PREFIX}{content}/{parts['train'].name}"
    _HELD[source] = parts["train"], parts.get("val")
    return source


def _checked_name(name: str) -> str:
    """Raises UserError for a name that is no part of a file's name."""
    if name and (set(name) & set("/\\,=:@ ") or name.startswith(".")):
        raise UserError(f"data_name='{name}' names files; use letters, digits, dot, dash and underscore.")
    return name


def _both_splits(images: Mapping[str, Any], labels: Any) -> "tuple[_Pictures, _Pictures]":
    keys = {str(key).lower(): key for key in images}
    train = next((keys[key] for key in TRAIN if key in keys), None)
    val = next((keys[key] for key in VAL if key in keys), None)
    if len(images) != 2 or train is None or val is None:
        raise UserError(f"data has the splits {', '.join(map(str, images))}; give two, 'train' and 'val' (or 'test').")
    if labels is not None:
        raise UserError("labels= belongs to one set of images; of two splits give pairs, {'train': (images, labels)}.")
    return _set_of(images[train]), _set_of(images[val])


# ---- one set of images ---------------------------------------------------------------------------------------------


class _Pictures(ImageSet):
    """Pictures of any of the kinds, each made RGB bytes when it is asked for."""

    labelled_by = "give labels=, one of every image, or pairs of images and labels"

    def __init__(self, items: Any, count: int, labelled: bool) -> None:
        self.items, self.count, self.labelled, self.name, self.split = items, count, labelled, "memory", "train"
        self.marks: list[bytes] = []  # of every image, where all have been read for their labels
        self.lock = threading.Lock()  # a dataset may hold a file that two threads must not read at once

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "lock": threading.Lock()}

    def __len__(self) -> int:
        return self.count

    def path(self, index: int) -> str:
        item = self.items[index] if isinstance(self.items, list) else None
        return str(Path(item)) if isinstance(item, str | os.PathLike) else f"{self.name}[{index}]"

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        return self.pixels_in(self.item(index), index)

    def item(self, index: int) -> Any:
        """What the pictures hold at a place, of a dataset an image and mostly its label. Raises BrokenImage, and
        UserError where they hold nothing by number."""
        try:
            with self._broken(index), self.lock:
                return self.items[index]
        except (KeyError, TypeError, NotImplementedError) as error:
            what, why = type(self.items).__name__, f"{type(error).__name__} {error}".strip()
            raise UserError(f"data is a {what} that gives no image {index} ({why}); give {KINDS}.") from error

    def pixels_in(self, item: Any, index: int) -> UInt8[Tensor, "3 h w"]:
        """The picture of the item at a place. Raises BrokenImage and UserError as `pixels_of`."""
        with self._broken(index):
            return pixels_of(_picture_in(item) if self.labelled else item, self.path(index))

    @contextmanager
    def _broken(self, index: int) -> Iterator[None]:
        """What a reader raises on a file that it cannot read, as BrokenImage."""
        try:
            yield
        except (BrokenImage, UserError):
            raise
        except (OSError, ValueError, SyntaxError) as error:
            raise BrokenImage(self.path(index), reason(error)) from error

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
        _, height, width = self.load(index).shape
        return height, width

    def mark_and_label(self, index: int) -> tuple[bytes, Any]:
        """Hash of an image's size and pixels, of a broken one of its name; and its label, None where there is none."""
        label = None
        try:
            item = self.item(index)
            label = _label_in(item) if self.labelled else None
            pixels = self.pixels_in(item, index)
        except BrokenImage as error:
            return hashlib.sha256(str(error.name).encode()).digest(), label
        mark = hashlib.sha256(str(tuple(pixels.shape)).encode())
        mark.update(np.ascontiguousarray(pixels.numpy()).data)
        return mark.digest(), label


def _set_of(images: Any, labels: Any = None) -> _Pictures:
    """The set that one value stands for. Raises UserError."""
    pair = isinstance(images, tuple) and len(images) == 2
    if pair and not _is_picture(images[1]) and not isinstance(images[1], str | os.PathLike):
        if labels is not None:
            raise UserError("data brings labels of its own, (images, labels); leave out labels=.")
        images, labels = images
    if isinstance(images, Mapping):
        images, labels = _of_batch(images, labels)
    if isinstance(images, ImageSet):
        pictures = _Pictures(_Loaded(images), len(images), labelled=False)
        pictures.classes, pictures.labels = images.classes, images.labels
    elif isinstance(images, np.ndarray | Tensor):
        pictures = _of_array(images)
    elif _is_picture(images):
        pictures = _Pictures([images], 1, labelled=False)
    elif isinstance(images, list | tuple):
        for one in images:
            if isinstance(one, str | os.PathLike) and not Path(one).expanduser().is_file():
                raise UserError(f"There is no image file {one}; give paths of image files.")
        pictures = _Pictures(list(images), len(images), labelled=False)
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        pictures = _of_dataset(images, with_labels=labels is None)
    else:
        raise UserError(f"data is a {type(images).__name__}; give a path, {KINDS}.")
    if not len(pictures):
        raise UserError("data holds no images; give at least one.")
    if labels is not None:
        pictures.classes, pictures.labels = _classes_and_labels(labels, len(pictures))
    return pictures


def _of_batch(item: Mapping[str, Any], labels: Any) -> tuple[Any, Any]:
    """Images and labels of a dataset's item or batch, {"image": ..., "label": ...}. Raises UserError."""
    if not _is_one_item(item):
        raise UserError(f"data is a mapping of {', '.join(map(str, item))}; give {KINDS}.")
    picture = _picture_in(item)
    labels = _label_in(item) if labels is None else labels
    if not (_is_picture(picture) or isinstance(picture, str | os.PathLike)):
        return picture, labels
    return [picture], labels if labels is None else np.asarray(labels).reshape(-1)


class _Loaded:
    """The decoded images of another set, by index."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor:
        return self.images.load(index)


def _of_array(images: "np.ndarray | Tensor") -> _Pictures:
    """Images of one array: [n, h, w, 3], [n, 3, h, w] or grey [n, h, w]; of three dimensions also one picture."""
    values = _numpy(images)
    if values.ndim == 3 and (values.shape[2] == 3 or values.shape[0] == 3) and values.dtype != object:
        values = values[None]
    if values.ndim not in (3, 4) or values.dtype.kind not in "uf":
        raise UserError(f"data is an array of {values.dtype} {list(values.shape)}; give uint8 [n, h, w, 3].")
    return _Pictures(values, len(values), labelled=False)


def _of_dataset(dataset: Any, *, with_labels: bool) -> _Pictures:
    """Images and labels of a map-style dataset. Raises UserError when it is not the same every time it is read."""
    count = len(dataset)
    pictures = _Pictures(dataset, count, labelled=True)
    for index in np.unique(np.linspace(0, count - 1, CHECKED).astype(int)).tolist() if count else []:
        try:
            same = torch.equal(pictures.load(index), pictures.load(index))
        except BrokenImage:
            continue  # left out and counted later, as of any source
        if not same:
            raise UserError(
                f"The {type(dataset).__name__} gives another image {index} when it is read again; leave out its random "
                "transforms, training crops and changes the images itself."
            )
    if not with_labels:
        return pictures
    both = [pictures.mark_and_label(index) for index in range(count)]
    pictures.marks, labels = [mark for mark, _ in both], [label for _, label in both]
    unlabelled = [index for index, label in enumerate(labels) if label is None]
    if len(unlabelled) == count:
        return pictures
    if unlabelled:
        raise _complaint(pictures, unlabelled[0])
    pictures.classes, pictures.labels = _classes_and_labels(labels, count, _names_in(dataset))
    return pictures


def _names_in(dataset: Any) -> tuple[str, ...]:
    """What a dataset calls its classes, or the one that it is a part of; empty where neither does."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple):
            return tuple(map(str, names))
        dataset = getattr(dataset, "dataset", None)
    return ()


def _complaint(pictures: _Pictures, index: int) -> UserError:
    """Of a dataset's image that brings no label, where others do."""
    try:
        pictures.item(index)
        why = "has no label"
    except BrokenImage as error:
        why = f"cannot be read ({error.reason})"
    return UserError(f"Image {index} of the {type(pictures.items).__name__} {why}; leave it out.")


def _classes_and_labels(
    labels: Any, count: int, names: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]] | tuple[None, None]:
    """Class names and numbers of labels that are whole numbers or words, as of an .npz; `names` call whole numbers
    where there are enough of them. Raises UserError."""
    values = _numpy(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype == object and values.size and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)
    plain = plain_labels(values, count, "`labels`")
    named = plain.dtype.kind != "U" and plain.max(initial=-1) < len(names)
    numbers, classes = number_labels({"": plain}, names if named else None, "`labels`").get("", (None, None))
    return (None, None) if classes is None or numbers is None else (classes, numbers)


# ---- one picture ---------------------------------------------------------------------------------------------------


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | Tensor) and _is_rgb(value))


def _is_rgb(value: "np.ndarray | Tensor") -> bool:
    """Whether an array is one picture of three channels."""
    return value.ndim == 3 and 3 in (value.shape[0], value.shape[2])


def _is_one_item(value: Mapping[str, Any]) -> bool:
    return "image" in value or "img" in value


def _picture_in(item: Any) -> Any:
    """The picture of a dataset's item: the first of a tuple, or what a mapping has under "image"."""
    if isinstance(item, tuple | list):
        return item[0]
    if isinstance(item, Mapping):
        return item["image"] if "image" in item else item["img"]
    return item


def _label_in(item: Any) -> Any:
    """The label of a dataset's item: the second of a tuple, or what a mapping has under "label"; None without one."""
    if isinstance(item, tuple | list):
        return item[1] if len(item) > 1 else None
    return item.get("label") if isinstance(item, Mapping) else None


def pixels_of(picture: Any, name: str = "image") -> UInt8[Tensor, "3 h w"]:
    """RGB bytes of a PIL image, a path, or an array: bytes, or floats in [0, 1]; grey becomes RGB.

    Raises UserError for what is no picture, BrokenImage for a file that cannot be decoded.
    """
    if isinstance(picture, str | os.PathLike):
        return decode(Path(picture).expanduser().read_bytes(), name)
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture) or picture
        try:
            return torch.from_numpy(np.array(rgb(upright))).permute(2, 0, 1)
        except ValueError as error:
            raise UserError(f"{name} cannot be read: {error}.") from error
    if not isinstance(picture, np.ndarray | Tensor):
        raise UserError(f"{name} is a {type(picture).__name__}; give {KINDS}.")
    values = _numpy(picture)
    return torch.from_numpy(_bytes_of(_channels_last(values, name), name)).permute(2, 0, 1)


def _numpy(values: "np.ndarray | Tensor") -> np.ndarray:
    """An array of the same values; bfloat16, which NumPy lacks, as float32."""
    if not isinstance(values, Tensor):
        return values
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()


def _channels_last(values: np.ndarray, name: str) -> np.ndarray:
    """[h, w, 3] of any of the layouts."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] not in (1, 3) and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] not in (1, 3) or not values.size:
        raise UserError(
            f"{name} is an array {list(values.shape)}; give [h, w, 3] or [3, h, w], or one channel for grey."
        )
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def _bytes_of(values: np.ndarray, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Bytes of bytes, or of floats in [0, 1]."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f":
        raise UserError(f"{name} has values of {values.dtype}; give uint8, or floats from 0 to 1.")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{name} has values from {low:.3g} to {high:.3g}; give uint8, or floats from 0 to 1 (leave out Normalize)."
        )
    return np.round(values * 255).astype(np.uint8)
