"""What the folders of a source mean: which are splits, which hold masks, which are classes.

Names are compared without case. A folder is read as

    masks       a name of MASKS beside a folder of PICTURES' names (images/, masks/), or beside pictures of the same
                file names where the masks are lossless; NAME_masks beside NAME; a file NAME_mask beside a file NAME
    a split     TRAIN or VAL at the top, or right below images/ and annotations/ (ADE20K); train2017/, training_set/
    unlabelled  UNLABELLED beside splits or classes: pictures to train on without a label
    a class     every other folder
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from iwm.runtime.errors import UserError

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "test", "testing")
"""Names of the splits' folders, also with a year or with set, images, data at the end; of several the first is
taken."""
UNLABELLED = ("unlabeled", "unlabelled", "nolabel", "nolabels", "unsup", "unsupervised")
PICTURES = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "leftimg8bit", "original", "rgb")
MASKS = (
    *("annotations", "annotation", "annots", "annot", "anno", "masks", "mask", "labels", "label", "groundtruth", "gt"),
    *("gts", "gtfine", "gtcoarse", "segmentationclass", "segmentationclassraw", "segmentationclassaug"),
    *("segmentations", "segmentation", "seg", "segs", "trimaps", "labelids", "mattes"),
)
INSTANCES = ("segmentationobject", "instances")
"""Masks that number objects and no classes: no pictures, and no masks of `iwm segment` either."""
MASK_ENDINGS = re.compile(r"[ _.-]?(annotations?|annots?|masks?|labels?|gt|groundtruth|segmentations?|segs?)$", re.I)
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
Named = tuple[str, list[str]]
"""A file's path below its root as it is stored, and the parts of it that lie below single top folders, the split's
folder and folders of pictures or masks."""


@dataclass
class Layout:
    """The image files of a source, parted."""

    train: list[Named]
    val: list[Named] | None
    """None where the source has no such folder."""
    how: str
    """In words how the two are told apart."""
    train_masks: list[Named] = field(default_factory=list)
    val_masks: list[Named] = field(default_factory=list)
    unlabelled: list[Named] = field(default_factory=list)
    """To be trained on beside `train`."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what is left out or read otherwise than one may think."""


def parts_of(path: str) -> list[str]:
    """The folders and the file of a stored path; archives from Windows have backslashes, others begin with ./."""
    parts = path.replace("\\", "/").split("/")
    return parts if not {"", ".", ".."} & {*parts} else [part for part in parts if part not in ("", ".", "..")]


def read_layout(root: Path, paths: Sequence[str]) -> Layout:
    """The splits, masks and unlabelled pictures among image files below `root`.

    Raises UserError when there are validation folders only, or masks only.
    """
    files = _below_single_folders([(path, parts_of(path)) for path in paths])
    pictures, masks = part_masks(files)
    if not pictures:
        raise UserError(f"'{root}' holds masks and no images; put the images beside them, into images/.")
    while (top := _single_folder(pictures)) and masks:  # images/all/1.jpg and masks/all/1.png
        pictures = _below(pictures, top)
        masks = [(path, parts[1:] if parts[0] == top and len(parts) > 1 else parts) for path, parts in masks]
    layout = _part_splits(root, pictures)
    layout.train_masks, layout.val_masks = _split_like(layout, root, masks)
    return layout


# ---- masks ---------------------------------------------------------------------------------------------------------


def part_masks(files: Sequence[Named]) -> tuple[list[Named], list[Named]]:
    """Pictures and masks among the files; folders that only say which of both they hold are taken out of the parts."""
    mask_folders, picture_folders = _mask_folders(files)
    stems: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for _, parts in files:
        stems[tuple(parts[:-1])].add(PurePosixPath(parts[-1]).stem)
    pictures: list[Named] = []
    masks: list[Named] = []
    for path, parts in files:
        folders = tuple(parts[:-1])
        depth = next((d for d in range(1, len(folders) + 1) if folders[:d] in mask_folders), 0) if mask_folders else 0
        if depth:
            partner = mask_folders[folders[:depth]]
            masks.append((path, [*parts[: depth - 1], *([partner] if partner else []), *parts[depth:]]))
        elif _is_mask_beside(PurePosixPath(parts[-1]).stem, stems[folders]):
            masks.append((path, parts))
        else:
            kept = [name for d, name in enumerate(folders, start=1) if folders[:d] not in picture_folders]
            pictures.append((path, [*kept, parts[-1]] if picture_folders else parts))
    return pictures, masks


def _is_mask_beside(stem: str, others: Iterable[str]) -> bool:
    """Whether a file is the mask of another in its folder: x_mask.png beside x.png."""
    match = None if stem[-1:].isdigit() else MASK_ENDINGS.search(stem)
    return bool(match and match.group(0)[0] in " _.-" and stem[: match.start()] in others)


def _mask_folders(files: Sequence[Named]) -> tuple[dict[tuple[str, ...], str], set[tuple[str, ...]]]:
    """Folders of masks, each with the folder name that its pictures have instead ("" for none), and the folders of
    pictures whose name says only that."""
    folders = {
        tuple(parts[:depth]) for parts in {tuple(p[:-1]) for _, p in files} for depth in range(1, len(parts) + 1)
    }
    candidates = sorted(folder for folder in folders if _is_mask_word(folder[-1]))
    masks: dict[tuple[str, ...], str] = {}
    pictures: set[tuple[str, ...]] = set()
    if not candidates:
        return masks, pictures
    contents = _contents(files, folders)
    beside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folder in sorted(folders):
        if not _is_mask_word(folder[-1]):
            beside[folder[:-1]].append(folder[-1])
    for *above, name in candidates:
        parent, folder = tuple(above), (*above, name)
        partner = _partner(folder, beside[parent], contents)
        if partner is None:
            continue
        says_only_that = _plain(name) in (*MASKS, *INSTANCES) or _plain(partner) in PICTURES
        masks[folder] = "" if says_only_that else partner
        if _plain(partner) in PICTURES:
            pictures |= {(*parent, other) for other in beside[parent] if _plain(other) in PICTURES}
        elif says_only_that and partner and not split_of(partner):
            pictures.add((*parent, partner))
    return masks, pictures


def _contents(files: Sequence[Named], folders: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    """Names of the files in every folder, those of folders below included; under () those at the top."""
    contents: dict[tuple[str, ...], list[str]] = {folder: [] for folder in folders} | {(): []}
    for _, parts in files:
        for depth in range(1, len(parts)):
            contents[tuple(parts[:depth])].append(parts[-1])
        if len(parts) == 1:
            contents[()].append(parts[-1])
    return contents


def _partner(folder: tuple[str, ...], others: Sequence[str], contents: dict[tuple[str, ...], list[str]]) -> str | None:
    """The folder among `others` beside `folder` whose pictures have masks in it, "" for the pictures around it, None
    where it holds no masks."""
    parent, name = folder[:-1], folder[-1]
    only_masks = _plain(name) in (*MASKS, *INSTANCES)
    for other in others:
        if only_masks and _plain(other) in PICTURES:
            return other
        if not only_masks and _plain(MASK_ENDINGS.sub("", name)) == _plain(other):
            return other  # train_masks beside train, images_gt beside images
    if not only_masks or any(file.lower().endswith(LOSSY) for file in contents[folder]):
        return None  # a class of photographs may be called mask
    own = {_picture_stem(file) for file in contents[folder]}
    for other in (*others, ""):
        around = contents[(*parent, other) if other else parent]
        if 2 * len(own & {PurePosixPath(file).stem for file in around}) > len(own):
            return other
    return None


def _picture_stem(mask: str) -> str:
    """The stem of a mask's picture: 1 for 1_mask.png."""
    return MASK_ENDINGS.sub("", PurePosixPath(mask).stem) or PurePosixPath(mask).stem


def mask_key(parts: Sequence[str], is_mask: bool) -> str:
    """What a picture and its mask have in common: the path without suffix and, of a mask, without `_mask`."""
    path = PurePosixPath(*parts)
    return str(path.with_name(_picture_stem(path.name) if is_mask else path.stem))


def _plain(name: str) -> str:
    return re.sub(r"[ _.-]+", "", name.lower())


def _is_mask_word(name: str) -> bool:
    return _plain(name) in (*MASKS, *INSTANCES) or bool(MASK_ENDINGS.search(name))


# ---- splits --------------------------------------------------------------------------------------------------------


def split_of(folder: str) -> str:
    """ "train", "val", ... for the name of a split's folder (Training, train2017, test_set, val-images); else ""."""
    pattern = rf"({'|'.join((*TRAIN, *VAL))})[ _.-]*\d{{0,4}}[ _.-]*(set|images|imgs|data|split)?"
    match = re.fullmatch(pattern, folder.lower())
    return match.group(1) if match else ""


def _single_folder(files: Sequence[Named]) -> str:
    """The folder that all files lie in, "" for none."""
    tops = {parts[0] if len(parts) > 1 else "" for _, parts in files}
    return tops.pop() if len(tops) == 1 else ""


def _below_single_folders(files: list[Named]) -> list[Named]:
    while top := _single_folder(files):
        files = _below(files, top)
    return files


def _part_splits(root: Path, files: list[Named]) -> Layout:
    folders = _count_by_top(files)
    train, val = _first(folders, TRAIN), _first(folders, VAL)
    splits = [folder for folder in folders if split_of(folder)]
    held = sorted((folder for folder in splits if split_of(folder) in VAL), key=lambda name: VAL.index(split_of(name)))
    loose = sum(len(parts) == 1 for _, parts in files)
    extra = [folder for folder in folders if _plain(folder) in UNLABELLED]
    classes = [folder for folder in folders if folder not in splits and folder not in extra]
    if train is None and len(held) > 1 and len(held) == len(folders) and not loose:
        named = " and ".join(f"{folder.lower()}/" for folder in held)
        raise UserError(f"'{root}' has {named} but no train/ folder; add one, or leave only one of those in it.")
    if len(folders) == 1 and loose and not splits:  # pets/train, pets/val and a stray picture
        inner = _below(files, next(iter(folders)))
        tops = _count_by_top(inner)
        if _first(tops, TRAIN) and _first(tops, VAL):
            layout = _part_splits(root, inner)
            layout.notes.append(
                f"{loose} of {len(files):,} images are left out, for they lie beside {next(iter(folders))}/."
            )
            return layout
    flat = train is not None and all(len(parts) == 2 for _, parts in files if parts[0] == train)
    if train is None or (flat and val is None and classes):
        layout = Layout(files, None, "all images")
        if splits and (classes or extra):
            beside = ", ".join(f"{folder}/" for folder in sorted(classes or extra)[:3])
            layout.notes.append(
                f"{splits[0]}/ lies beside {beside} and is read as a class like them, so nothing is left out; put the "
                "classes into train/ and val/ if it is a split."
            )
        return _without_labels(layout, extra if len(classes) > 1 else [])
    layout = Layout(_below(files, train), None, f"{train.lower()}/")
    if val is not None:
        layout.val, layout.how = _below(files, val), f"{train.lower()}/ and {val.lower()}/"
    layout.unlabelled = [named for folder in extra for named in _below(files, folder)]
    rest = {f"{folder}/": number for folder, number in folders.items() if folder not in (train, val, *extra)}
    if loose:
        rest["files beside the folders"] = loose
    if rest:
        listed = ", ".join(f"{name} ({number})" for name, number in sorted(rest.items()))
        neither = "in neither of" if val else "not in"
        layout.notes.append(
            f"{sum(rest.values()):,} of {len(files):,} images are left out, for they are {neither} {layout.how}: "
            f"{listed}."
        )
    return layout


def _without_labels(layout: Layout, extra: Sequence[str]) -> Layout:
    """Take the folders of unlabelled pictures out of the classes."""
    layout.unlabelled = [named for named in layout.train if len(named[1]) > 1 and named[1][0] in extra]
    layout.train = [named for named in layout.train if not (len(named[1]) > 1 and named[1][0] in extra)]
    return layout


def _split_like(layout: Layout, root: Path, masks: list[Named]) -> tuple[list[Named], list[Named]]:
    """The masks of training and of validation, parted as the pictures were."""
    if layout.how == "all images":
        return masks, []
    folders = _count_by_top(masks)
    sides = [layout.how.split("/ and ")[0].strip("/"), layout.how.split("/ and ")[-1].strip("/")]
    train, val = (next((folder for folder in folders if folder.lower() == side), "") for side in sides)
    return _below(masks, train), _below(masks, val) if layout.val is not None else []


def _count_by_top(files: Sequence[Named]) -> dict[str, int]:
    """Images of every folder at the top, in the order of their names."""
    counts: dict[str, int] = defaultdict(int)
    for _, parts in files:
        if len(parts) > 1:
            counts[parts[0]] += 1
    return dict(sorted(counts.items()))


def _first(folders: Iterable[str], names: Sequence[str]) -> str | None:
    """The folder of a split: by the order of `names`, the plain name before train2017."""
    ranked = [(names.index(split_of(folder)), len(folder), folder) for folder in folders if split_of(folder) in names]
    return min(ranked)[2] if ranked else None


def _below(files: Sequence[Named], folder: str) -> list[Named]:
    return [(path, parts[1:]) for path, parts in files if len(parts) > 1 and parts[0] == folder]
