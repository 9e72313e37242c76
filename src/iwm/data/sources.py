"""A path is a dataset: open a source of images, of which each is decoded when asked for. A source is a folder, a .zip,
an .npz, `sample`, `sample-objects`, or several of them separated by commas; class folders are labels; `train/` and
`val/` (or `test/`) folders are its splits, else a seeded tenth is held out.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iwm.data import arrays, file_index, grey, memory
from iwm.data.grey import GreyRanges
from iwm.data.image_sets import (
    UNLABELLED,
    Files,
    ImageSet,
    Mix,
    Subset,
    _Photos,
    _Scenes,
    require_labels,
    with_classes,
)
from iwm.data.layout import Named, part_masks, parts_of, read_layout
from iwm.data.splits import Rest, hold_out_images, require_untrained
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
    for part in _present(as_text(source)):
        train, valid, _ = _open_one(part, size or 64)
        if valid is None and split != "all":
            train, valid = _hold_out(part, train, seed, measured=split == "val")
        chosen = {"train": [train], "val": [valid], "all": [train, valid]}[split]
        members.append(_join([member for member in chosen if member is not None], split))
    return _join(members, split)


def open_pictures(source: str, size: int | None = None) -> ImageSet:
    """Every image of a source whatever its folders are called, masks left out, or a single image file. Raises
    UserError."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in file_index.SUFFIXES:
        return _single_file(path)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        name = path.resolve().name if path.is_dir() else path.stem
        names = file_index.file_names(path)
        pictures, masks = part_masks([(item, parts_of(item)) for item in file_index.pictures_among(path, names)])
        _note_masks(name, masks)
        paths = [item for item, _ in pictures or masks]
        return Files(path, paths, name, "all", grey_ranges(path, name, names, paths))
    return open_images(source, "all", size=size)


def _single_file(path: Path) -> Files:
    """One image file; grey values of more than 8 bits are those of its folder's images."""
    images = Files(path.parent, [path.name], path.stem, "all")
    if images.survey().low:
        for folder in list(path.absolute().parents)[:4]:
            if (folder / grey.FILE).is_file():
                images.ranges = grey_ranges(folder, path.stem, [grey.FILE], [])
                return images
        alike = sorted(item.name for item in path.parent.iterdir() if item.suffix.lower() == path.suffix.lower())
        images.ranges = grey_ranges(path.parent, path.stem, [], alike)
    return images


def open_splits(
    source: str, val: str = "", *, seed: int = 0, size: int | None = None
) -> tuple[ImageSet, ImageSet, str]:
    """Training images, validation images, and in words how they were split (short names only, no paths).

    `val` names another source for validation: its own val/ or test/, else all of it. `seed` and `size` as in
    `open_images`. Where both have classes they have the same, by name, though one may lack images of some. Raises
    UserError.
    """
    trains, valids, how = [], [], []
    for part in _present(source):
        train, valid, parted = _open_one(part, size or 64)
        if not val and valid is None:
            train, valid = _hold_out(part, train, seed)
            parted = f"a seeded tenth (seed {seed}) held out"
        how.append(f"{train.name}: {parted}")
        trains.append(train)
        valids.append(valid)
    if val:
        opened = [_open_one(part, size or 64) for part in _present(val)]
        require_others([part for part, one in zip(_parts(val), opened, strict=True) if one[1] is None], _parts(source))
        valids = [train if valid is None else valid for train, valid, _ in opened]
    train, valid = _join(trains, "train"), _join(valids, "val")
    if val:
        how = [f"{train.name} for training, {valid.name} for validation"]
    _share_classes(train, valid)
    return train, valid, "; ".join(how)


def _hold_out(source: str, images: ImageSet, seed: int, *, measured: bool = True) -> tuple[Rest, ImageSet]:
    """The images of one source without a seeded tenth, and the tenth. Raises UserError where it is `measured` on and
    was trained on."""
    # Images in memory may be given with labels or without: the tenth must be the same.
    rest, tenth = hold_out_images(images, seed, by_class=not memory.is_memory(source))
    if measured:
        require_untrained(source_identity(source), rest)
    return rest, tenth


@dataclass(frozen=True)
class LabelledSplits:
    """A labelled source, checked: every image has a label and nothing is asked that was never shown."""

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    sentence: str
    """Where the splits come from."""


def labelled_splits(data: str, val: str = "", *, size: int | None = None) -> LabelledSplits:
    """Open a classification source; images without a label are left out. Raises UserError without labels, with one
    class only, and when a class of validation has no training image."""
    if size is not None and size < 1:
        raise UserError(f"--size {size} is no side of a picture; give 1 px or more, or 0 for the run's own.")
    train, test, sentence = open_splits(data, val, size=size)
    train, test = _with_labels(train), _with_labels(test)
    classes, labels = require_labels(train)
    _, truth = require_labels(test)
    present = np.unique(labels)
    if len(present) < 2:
        raise UserError(
            f"{data} has one class only ('{classes[present[0]]}') to train on; a classifier needs two or more."
        )
    missing = np.setdiff1d(truth, labels)
    if len(missing):
        alike = next((classes[i] for i in present if classes[i].lower() == classes[missing[0]].lower()), "")
        raise UserError(
            f"Class '{classes[missing[0]]}' of {data} has no training image; add some or take it out of validation"
            f"{f' (training has {alike!r})' if alike else ''}."
        )
    if len(lacking := np.setdiff1d(labels, truth)):
        listed = ", ".join(classes[label] for label in lacking[:5]) + ", ..." * (len(lacking) > 5)
        file_index.note(test.name, f"{len(lacking)} of {len(present)} classes have no validation image: {listed}.")
    return LabelledSplits(train, test, classes, sentence)


def _with_labels(images: ImageSet) -> ImageSet:
    """The images that have a label. Raises UserError when none has."""
    _, labels = require_labels(images)
    rows = np.flatnonzero(labels != UNLABELLED)
    if len(rows) == len(labels):
        return images
    if not len(rows):
        raise UserError(f"Not one image of '{images.name}' ({images.split}) has a label; give some labels.")
    file_index.note(
        images.name,
        f"{len(labels) - len(rows):,} of {len(labels):,} images ({images.split}) have no label and are "
        "left out of what needs one.",
    )
    return Subset(images, rows)


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
        for part in sources_of(source)
    )


def same_names(source: str, now_at: str) -> bool:
    """Whether a source that is there has the names of one that may have been moved: of files and folders, in order."""
    now = sources_of(now_at)
    names = [source] if len(now) == 1 and "," in now_at else sources_of(source)
    return [Path(part).name for part in names] == [Path(part).name for part in now]


def is_source(folder: Path, source: str) -> bool:
    """Whether a folder is one of the sources itself, and not a folder in it."""
    return any(Path(part).expanduser().resolve() == folder.resolve() for part in _parts(source) if part not in EMBEDDED)


def sources_of(text: str) -> list[str]:
    """The sources of a comma-separated list; a path that has a comma in its name is one source."""
    return [text] if Path(text).expanduser().exists() else [part.strip() for part in text.split(",")]


def _parts(source: str) -> list[str]:
    """The sources that are named. Raises UserError when there are none."""
    parts = [part for part in sources_of(source) if part.strip()]
    if not parts:
        raise UserError("No images were named; give a folder, .zip, .npz, `sample` or `sample-objects`.")
    return parts


def _present(source: str) -> list[str]:
    """The sources that are named. Raises UserError for one of several that is not there: a name may have a comma."""
    parts = _parts(source)
    missing = [
        part for part in parts if not (part in EMBEDDED or memory.is_memory(part) or Path(part).expanduser().exists())
    ]
    if missing and len(parts) > 1:
        raise UserError(
            f"There is no '{missing[0]}'; '{source}', which is no path itself, was split at its commas into "
            f"{len(parts)} sources. Give the path of each, or the whole one as it is written on the disk."
        )
    return parts


def _open_one(source: str, size: int) -> tuple[ImageSet, ImageSet | None, str]:
    """Training and validation images of one source (None when it has no validation split), and how it has them."""
    if source in EMBEDDED and Path(source).exists():
        console.print(f"[yellow]'{source}' are the embedded images; the folder of that name here is ./{source}.")
    if source == "sample":
        return _Photos("train"), _Photos("val"), "800 and 119 of the embedded photos"
    if source == "sample-objects":
        return _Scenes("train", size), _Scenes("val", size), "scenes on different photos"
    if memory.is_memory(source):
        return *memory.splits_of(source), "images in memory"
    path, name = file_index.locate(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return arrays.open_arrays(path, name)
    return _open_files(path, name, file_index.file_names(path))


def _open_files(root: Path, name: str, names: Sequence[str]) -> tuple[ImageSet, ImageSet | None, str]:
    """Find splits and classes in the paths below `root`."""
    paths = file_index.pictures_among(root, names)
    layout = read_layout(root, paths)
    for sentence in layout.notes:
        file_index.note(name, sentence)
    _note_masks(name, [*layout.train_masks, *layout.val_masks])
    ranges = grey_ranges(root, name, names, paths)
    tops = {parts[0] for _, parts in layout.train if len(parts) > 1}
    files = [*layout.train, *layout.unlabelled]
    train = Files(root, [path for path, _ in files], name, "train", ranges)
    _set_labels(train, layout.train if len(tops) > 1 else [])
    if layout.val is None:
        return train, None, layout.how
    folder = layout.how.split("/ and ")[-1]
    if train.labels is not None and all(len(parts) == 1 for _, parts in layout.val):
        file_index.note(
            name,
            f"{folder} has no class folders as train/ has, so its {len(layout.val):,} images are left out and a tenth "
            "of train/ is held out.",
        )
        return train, None, layout.how.split(" and ")[0]
    val = Files(root, [path for path, _ in layout.val], name, "val", ranges)
    several = len({parts[0] for _, parts in layout.val if len(parts) > 1}) > 1
    _set_labels(val, layout.val if several or train.labels is not None else [])
    _share_classes(train, val)
    return train, val, layout.how


def _set_labels(images: Files, files: Sequence[Named]) -> None:
    """Label the first images, those of `files`, by their folders; the others, and files beside folders, have none."""
    tops = [parts[0] if len(parts) > 1 else "" for _, parts in files]
    classes = tuple(sorted({*tops} - {""}))
    if classes:
        number = {"": UNLABELLED} | {kind: index for index, kind in enumerate(classes)}
        labels = [number[top] for top in tops] + [UNLABELLED] * (len(images) - len(files))
        images.classes, images.labels = classes, np.array(labels, dtype=np.int64)


def _share_classes(train: ImageSet, valid: ImageSet) -> None:
    """Give both sets the classes of either, in training's order; labels go by name."""
    if train.classes is not None and valid.classes is not None:
        classes = (*train.classes, *(kind for kind in valid.classes if kind not in train.classes))
        with_classes(train, classes)
        with_classes(valid, classes)


def grey_ranges(root: Path, name: str, names: Sequence[str], paths: Sequence[str]) -> GreyRanges:
    """The range of a source's grey values: from its grey_range.txt among `names`, else from some of its images."""
    file = file_index.uppermost(names, grey.FILE)
    if file is not None:
        return grey.parse_range(Files(root, [file], "", "").read(0).decode(errors="replace"), root / file)
    survey = Files(root, paths, name, "all").survey()
    for sentence in survey.notes():
        file_index.note(name, sentence)
    return survey.ranges()


def _note_masks(name: str, masks: Sequence[Named]) -> None:
    if masks:
        file_index.note(name, f"{len(masks):,} masks are left out of the images, e.g. {masks[0][0]}.")


def _join(members: Sequence[ImageSet], split: str) -> ImageSet:
    return members[0] if len(members) == 1 else Mix(members, split)
