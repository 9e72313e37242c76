"""Sets of images: indexed, each decoded when asked for, some with classes and labels."""

import io
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from iwm.data import samples
from iwm.data.decode import BrokenImage, decode, drafted_size, reason
from iwm.data.grey import DEEP, FRAMES, LOOKED_AT, GreyRanges, Survey
from iwm.runtime.errors import UserError

log = logging.getLogger("iwm")


UNLABELLED = -1
"""Label of an image that has none, in a set whose other images have one."""


class ImageSet:
    """One split of one source, or of a mix of several; a sequence of pictures that are decoded when asked for."""

    name: str
    """Short name used in result files, e.g. "cifar10"; those of a mix are joined with "+"."""
    split: str
    """"train", "val" or "all"."""
    classes: tuple[str, ...] | None = None
    labels: Int64[np.ndarray, " n"] | None = None
    """Of every image its place in `classes`, or UNLABELLED."""
    labelled_by: str = (
        "put the images of each class into a folder of its own (CLASS/image.jpg, two classes or more), or give an .npz "
        "with `images` and `labels`"
    )
    """How such a source comes to have labels."""

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        """Decode one image (a channels-last view, which resizes fastest). Raises BrokenImage.

        Where no more than `least` px of the shorter side are needed, a larger photo may come at a half, a quarter or an
        eighth of its size, never below `least`.
        """
        raise NotImplementedError

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
        """Height and width of what `load` gives, without decoding. Raises BrokenImage."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        """A name of the picture that a person can find it by."""
        raise NotImplementedError


class Files(ImageSet):
    """Image files of a folder or a zip archive."""

    def __init__(
        self, root: Path, names: Sequence[str], name: str, split: str, ranges: GreyRanges | None = None
    ) -> None:
        """`names` are the files' paths below `root` (inside the archive) as they are stored there; `ranges` are those
        of the source's grey values."""
        self.root, self.names, self.name, self.split = root, list(names), name, split
        self.ranges = ranges
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        return str(self.root / self.names[index])

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        return decode(self.read(index), self.path(index), least, self.ranges)

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
        try:
            with Image.open(io.BytesIO(self.read(index))) as picture:
                return drafted_size(picture, least)
        except Exception as error:
            raise BrokenImage(self.path(index), reason(error)) from error

    def survey(self) -> Survey:
        """What the images hold that a header alone does not say: grey values, frames. Broken ones are passed over."""
        survey = Survey()
        rows = [row for row, name in enumerate(self.names) if name.lower().endswith((*DEEP, *FRAMES))]
        for place in np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int)) if rows else ():
            try:
                data = self.read(rows[place])
                with Image.open(io.BytesIO(data)) as picture:
                    survey.add(picture, data[:32])
            except Exception as error:  # it is named when it is decoded
                log.debug("Passed over %s: %s", self.path(rows[place]), reason(error))
        return survey

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

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(self.images[index].copy()).permute(2, 0, 1)

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
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

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(np.array(self.pictures[index])).permute(2, 0, 1)

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
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

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(samples.scene(self.split, index, self.size).image).permute(2, 0, 1)

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
        return self.size, self.size


class _Composite(ImageSet):
    """Images of other sets."""

    def member(self, index: int) -> tuple[ImageSet, int]:
        """The set that an image is of, and its place there."""
        raise NotImplementedError

    def path(self, index: int) -> str:
        images, place = self.member(index)
        return images.path(place)

    def load(self, index: int, least: int = 0) -> UInt8[Tensor, "3 h w"]:
        images, place = self.member(index)
        return images.load(place, least)

    def dimensions(self, index: int, least: int = 0) -> tuple[int, int]:
        images, place = self.member(index)
        return images.dimensions(place, least)


class Mix(_Composite):
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

    def member(self, index: int) -> tuple[ImageSet, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.members[which], index - (int(self.ends[which - 1]) if which else 0)


class Subset(_Composite):
    """Some images of a set, in the given order."""

    def __init__(self, images: ImageSet, indices: Int64[np.ndarray, " m"], split: str | None = None):
        self.images, self.indices = images, indices
        self.name, self.split, self.classes = images.name, split or images.split, images.classes
        self.labels = None if images.labels is None else images.labels[indices]
        self.labelled_by = images.labelled_by

    def __len__(self) -> int:
        return len(self.indices)

    def member(self, index: int) -> tuple[ImageSet, int]:
        return self.images, int(self.indices[index])


def require_batch(batch_size: int, count: int, name: str) -> None:
    """Raises UserError when the `count` images of the set called `name` are fewer than one batch has."""
    if batch_size > count:
        raise UserError(
            f"A batch of {batch_size} is larger than '{name}' with its {count} images; lower optim.batch_size or add "
            "images."
        )


def require_labels(images: ImageSet) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
    """Classes and labels of a set. Raises UserError when it has none."""
    if images.classes is None or images.labels is None:
        raise UserError(f"'{images.name}' has no labels; {images.labelled_by}.")
    return images.classes, images.labels


def with_classes(images: ImageSet, classes: tuple[str, ...]) -> None:
    """Number a set's labels by other classes, which hold its own by name."""
    if images.classes is None or images.labels is None or images.classes == classes:
        return
    places = np.array([classes.index(kind) for kind in images.classes] + [UNLABELLED], dtype=np.int64)
    images.classes, images.labels = classes, places[images.labels]
