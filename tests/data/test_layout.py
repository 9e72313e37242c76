"""What the folders of a source mean: splits, masks, classes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.data.layout import Layout, Named, mask_key, parts_of, read_layout, split_of
from iwm.runtime.errors import UserError

ROOT = Path("pets")


def below(files: list[Named] | None) -> list[str] | None:
    """What lies below the split of every file, in order."""
    return None if files is None else ["/".join(parts) for _, parts in files]


def layout_of(names: list[str]) -> Layout:
    return read_layout(ROOT, sorted(name for name in names if name.endswith((".png", ".jpg"))))


# ---- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("valid", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_folders_of_the_splits_in_any_case(train, valid, case):
    names = [f"{case(train)}/cat/1.png", f"{case(train)}/2.png", f"{case(valid)}/cat/3.png", "cat/4.png", "5.png"]
    for order in (names, names[::-1]):
        layout = layout_of(order)
        assert sorted(below(layout.train) or []) == ["2.png", "cat/1.png"]
        assert below(layout.val) == ["cat/3.png"]
        assert {path for path, _ in [*layout.train, *(layout.val or [])]} == set(names[:3])
        assert layout.how == f"{train}/ and {valid}/"
        assert [note.split(",")[0] for note in layout.notes] == ["2 of 5 images are left out"]


@pytest.mark.parametrize(
    ("names", "train", "valid", "how"),
    [
        # of several folders for a split the first of the list is taken
        ("train/1.png training/2.png val/3.png", "1.png", "3.png", "train/ and val/"),
        ("train/1.png test/2.png val/3.png", "1.png", "3.png", "train/ and val/"),
        ("train/1.png test/2.png validation/3.png", "1.png", "3.png", "train/ and validation/"),
        ("train/1.png validation/2.png valid/3.png", "1.png", "3.png", "train/ and valid/"),
        # one of the two alone
        ("train/1.png 2.png", "1.png", None, "train/"),
        ("train/a/1.png pictures/2.png", "a/1.png", None, "train/"),
        ("train/1.png bus/2.png", "bus/2.png train/1.png", None, "all images"),
        ("train/1.png bus/2.png val/3.png", "1.png", "3.png", "train/ and val/"),
        ("val/a/1.png cat/2.png", "cat/2.png val/a/1.png", None, "all images"),
        ("val/a/1.png test/a/2.png cat/3.png", "cat/3.png test/a/2.png val/a/1.png", None, "all images"),
        ("val/a/1.png test/a/2.png 3.png", "3.png test/a/2.png val/a/1.png", None, "all images"),
        # classes, nested or not, and names that only begin like a split's
        ("cat/1.png cat/a/b/2.png dog/3.png", "cat/1.png cat/a/b/2.png dog/3.png", None, "all images"),
        (
            "train/cat/a/1.png train/dog/2.png test/cat/b/3.png",
            "cat/a/1.png dog/2.png",
            "cat/b/3.png",
            "train/ and test/",
        ),
        ("trains/1.png values/2.png", "trains/1.png values/2.png", None, "all images"),
        ("train.png val.png", "train.png val.png", None, "all images"),
        # single top folders are stepped over, as deep as they go, but for a picture beside them
        ("pets/train/cat/1.png pets/val/cat/2.png", "cat/1.png", "cat/2.png", "train/ and val/"),
        ("a/b/c/train/1.png a/b/c/val/2.png", "1.png", "2.png", "train/ and val/"),
        ("a/b/cat/1.png a/b/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
        ("a/1.png a/2.png", "1.png 2.png", None, "all images"),
        ("a/1.png", "1.png", None, "all images"),
        ("pets/train/1.png pets/val/2.png 3.png", "1.png", "2.png", "train/ and val/"),
        ("pets/cat/1.png", "1.png", None, "all images"),
        # other spellings of the splits
        ("train2017/1.jpg val2017/2.jpg", "1.jpg", "2.jpg", "train2017/ and val2017/"),
        ("training_set/a/1.jpg test_set/a/2.jpg", "a/1.jpg", "a/2.jpg", "training_set/ and test_set/"),
        ("Training/a/1.jpg Testing/a/2.jpg", "a/1.jpg", "a/2.jpg", "training/ and testing/"),
        ("train-images/1.jpg dev/2.jpg", "1.jpg", "2.jpg", "train-images/ and dev/"),
        ("train2014/1.jpg train/2.jpg test1/3.jpg", "2.jpg", "3.jpg", "train/ and test1/"),
        ("train/cat/1.png train/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
        ("test/cat/1.png test/dog/2.png", "cat/1.png dog/2.png", None, "all images"),
    ],
)
def test_how_files_are_parted(names, train, valid, how):
    layout = layout_of(names.split())
    assert (below(layout.train), below(layout.val), layout.how) == (
        train.split(),
        valid.split() if valid else None,
        how,
    )


@pytest.mark.parametrize(
    ("names", "images", "masks"),
    [
        # a folder of images and one of masks, in every spelling
        ("images/1.jpg annotations/1.png", "1.jpg", "1.png"),
        ("images/1.jpg masks/1.png masks/2.png", "1.jpg", "1.png 2.png"),
        ("data/JPEGImages/1.jpg data/SegmentationClass/1.png data/SegmentationObject/1.png", "1.jpg", "1.png 1.png"),
        ("img/1.jpg mask/1_mask.png", "1.jpg", "1_mask.png"),
        ("Images/1.jpg Ground Truth/1.jpg", "1.jpg", "1.jpg"),
        # ADE20K's order and the other
        (
            "ade/Images/training/1.jpg ade/Images/validation/2.jpg ade/annotations/training/1.png "
            "ade/annotations/validation/2.png ade/images/stray.jpg",
            "1.jpg | 2.jpg",
            "1.png | 2.png",
        ),
        (
            "train/images/1.jpg train/masks/1.png val/images/2.jpg val/masks/2.png",
            "1.jpg | 2.jpg",
            "1.png | 2.png",
        ),
        # beside a split or a class
        ("train/1.jpg train_masks/1_mask.gif test/2.jpg", "1.jpg | 2.jpg", "1_mask.gif | "),
        ("train/1.png trainannot/1.png val/2.png valannot/2.png", "1.png | 2.png", "1.png | 2.png"),
        (
            "covid/images/1.png covid/masks/1.png flu/images/2.png flu/masks/2.png",
            "covid/1.png flu/2.png",
            "covid/1.png flu/2.png",
        ),
        # of the same names, without a folder of images
        ("tiles/1.tif tiles/2.tif labels/1.tif labels/2.tif", "1.tif 2.tif", "1.tif 2.tif"),
        ("1.jpg 2.jpg masks/1.png masks/2.png", "1.jpg 2.jpg", "1.png 2.png"),
        # in one folder
        (
            "case1/1.tif case1/1_mask.tif case2/2.tif case2/2_mask.tif",
            "case1/1.tif case2/2.tif",
            "case1/1_mask.tif case2/2_mask.tif",
        ),
        # no masks: classes of that name
        ("mask/1.jpg face/1.jpg", "face/1.jpg mask/1.jpg", ""),
        ("with_mask/1.png without_mask/1.png", "with_mask/1.png without_mask/1.png", ""),
        ("labels/1.png bottles/2.png", "bottles/2.png labels/1.png", ""),
        ("1_mask.png 2.png", "1_mask.png 2.png", ""),
    ],
)
def test_masks_are_no_images(names, images, masks):
    files = names.replace("Ground Truth", "Ground_Truth").split()
    layout = read_layout(ROOT, sorted(files))
    found = [" ".join(below(part) or []) for part in (layout.train, layout.val, layout.train_masks, layout.val_masks)]
    wanted = [part for text in (images, masks) for part in [*text.split(" | "), ""][:2]]
    assert found == wanted


def test_an_image_and_its_mask_have_one_key():
    assert mask_key(["a", "1.jpg"], is_mask=False) == mask_key(["a", "1_mask.png"], is_mask=True) == "a/1"
    assert mask_key(["1.2.jpg"], is_mask=False) == mask_key(["1.2.png"], is_mask=True) == "1.2"
    assert mask_key(["1_mask.png"], is_mask=False) == "1_mask"


def test_unlabelled_images_are_trained_on():
    layout = layout_of(["train/cat/1.png", "train/dog/2.png", "unlabeled/3.png", "test/cat/4.png"])
    assert below(layout.unlabelled) == ["3.png"]
    assert not layout.notes
    layout = layout_of(["cat/1.png", "dog/2.png", "Unlabelled/3.png"])
    assert (below(layout.train), below(layout.unlabelled)) == (["cat/1.png", "dog/2.png"], ["Unlabelled/3.png"])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            "train/a/1.png train/b/2.png other/3.png 4.png",
            "2 of 4 images are left out, for they are not in train/: files",
        ),
        (
            "train/1.png val/2.png test/3.png",
            r"1 of 3 images are left out, .* in neither of train/ and val/: test/ \(1\)",
        ),
        ("train/1.png bus/2.png", "train/ lies beside bus/ and is read as a class"),
        ("val/a/1.png cat/2.png", "val/ lies beside cat/ and is read as a class"),
        ("pets/train/1.png pets/val/2.png 3.png", "1 of 3 images are left out, for they lie beside pets/"),
    ],
)
def test_what_is_left_out_is_said(names, sentence):
    (note,) = layout_of(names.split()).notes
    assert re.match(sentence, note)


@pytest.mark.parametrize("names", ["val/a/1.png test/a/2.png", "top/Valid/1.png top/TEST/2.png"])
def test_validation_folders_alone_are_refused(names):
    with pytest.raises(UserError, match=r"'pets' has val(id)?/ and test/ but no train/ folder; add one, or leave only"):
        layout_of(names.split())


folders = st.sampled_from(["train", "Training", "val", "test", "cat", "dog", "images", "annotations", "masks"])
paths = st.lists(folders, max_size=3).map(lambda parts: "/".join([*parts, "1.png"]))


def split(names: list[str]) -> object:
    try:
        layout = layout_of(names)
    except UserError as error:
        return str(error)
    parts = (layout.train, layout.val, layout.train_masks, layout.val_masks, layout.unlabelled)
    return [sorted(below(part) or []) for part in parts], layout.how


@given(st.lists(paths, min_size=1, unique=True), st.randoms(use_true_random=False))
def test_neither_the_order_nor_a_folder_around_all_changes_anything(names, random):
    found = split(names)
    assert split([f"top/{name}" for name in names]) == found
    assert split(random.sample([*names, "notes.txt", ".DS_Store"], len(names) + 2)) == found


@given(st.lists(paths, min_size=1, unique=True))
def test_no_file_is_in_two_splits_and_every_path_is_one_of_those_given(names):
    try:
        layout = layout_of(names)
    except UserError:
        return
    files = [*layout.train, *(layout.val or []), *layout.train_masks, *layout.val_masks, *layout.unlabelled]
    given_out = [path for path, _ in files]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= set(names)
    for path, parts in files:
        assert parts[-1] == "1.png"
        assert set(parts) <= set(path.split("/"))


@pytest.mark.parametrize(
    "path", ["a/b/1.png", "a\\b\\1.png", "./a/b/1.png", "/a//b/1.png", "a/./b/1.png", "../a/b/1.png"]
)
def test_paths_of_every_archiver(path):
    assert parts_of(path) == ["a", "b", "1.png"]


@pytest.mark.parametrize(
    ("folder", "split"), [("train2017", "train"), ("Test-Images", "test"), ("trains", ""), ("validate", "")]
)
def test_names_of_splits(folder, split):
    assert split_of(folder) == split
