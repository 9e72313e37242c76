"""Segmentation sources, their splits, and what is wrong with them in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from picture_files import zipped
from PIL import Image

from iwm.data import samples
from iwm.data.annotations import Examples, annotated_splits, open_annotated
from iwm.data.crops import IGNORED
from iwm.data.sources import open_images
from iwm.runtime import devices
from iwm.runtime.errors import UserError


def pair(root: Path, split: str, stem: str, mask: np.ndarray, order: str = "split first", mode: str = "L") -> None:
    """An image whose red channel is its mask, and the mask."""
    for kind, suffix in (("images", "png"), ("annotations", "png")):
        folder = root / split / kind if order == "split first" else root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "images":
            pixels = np.zeros((*mask.shape, 3), dtype=np.uint8)
            pixels[..., 0] = mask
            Image.fromarray(pixels).save(folder / f"{stem}.{suffix}")
        else:
            picture = Image.fromarray(mask.astype(np.uint8))
            if mode == "P":
                picture.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
            picture.save(folder / f"{stem}.{suffix}")


def halves(first: int, second: int, height: int = 6, width: int = 8) -> np.ndarray:
    mask = np.full((height, width), first, dtype=np.uint8)
    mask[:, width // 2 :] = second
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training and two validation images of three classes and an ignored value, of several sizes."""
    folder = tmp_path / "rooms"
    for number, mask in enumerate((halves(0, 1), halves(1, 2, 8, 4), halves(2, 255))):
        pair(folder, "train", str(number), mask)
    for number, mask in enumerate((halves(0, 2), halves(1, 255))):
        pair(folder, "val", str(number), mask)
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "ADE20K's order", "palette"])
def test_images_and_masks_of_every_split(form, root, tmp_path):
    if form in ("ADE20K's order", "palette"):
        order = "kind first" if form == "ADE20K's order" else "split first"
        root = tmp_path / "other" / "rooms"
        names = ("training", "validation") if order == "kind first" else ("train", "val")
        for split, stem, mask in zip(
            (*2 * names[:1], names[1]), "abc", (halves(0, 1), halves(2, 255), halves(0, 2)), strict=True
        ):
            pair(root, split, stem, mask, order, "P" if form == "palette" else "L")
    source = str(zipped(root, tmp_path / "rooms.zip", "top/") if form == "zip" else root)
    splits = annotated_splits(source)
    assert splits.train.name == "rooms"
    assert splits.classes == ("0", "1", "2")
    assert not splits.named
    for part in (splits.train, splits.val):
        for index in range(len(part)):
            image, mask = part.load(index)
            red = image[0].short()
            red[red == 255] = IGNORED
            assert red.equal(mask)
    expected = np.zeros(3, dtype=int)
    for index in range(len(splits.train)):
        mask = splits.train.load(index)[1].numpy()
        expected += np.bincount(mask[mask >= 0], minlength=3)
    assert splits.train.pixels.tolist() == expected.tolist()


def test_for_pretraining_masks_are_no_pictures(root):
    opened = open_images(str(root), "all")
    assert len(opened) == 5
    assert opened.labels is None
    assert all("annotations" not in opened.path(index) for index in range(5))


def test_the_ignored_value_is_taken_out_of_the_classes(root, caplog):
    for mask_path in root.rglob("annotations/*.png"):
        mask = np.array(Image.open(mask_path))
        mask[mask == 255] = 1
        Image.fromarray(mask).save(mask_path)
    (root / "classes.txt").write_text("wall\nvoid\ndoor\n")
    splits = annotated_splits(str(root), ignore_index=1)
    assert splits.classes == ("wall", "door")
    assert splits.named
    assert "of the pixels of its training masks hold 1 and are neither learned nor counted" in caplog.text
    _, mask = splits.train.load(1)  # halves of void and door
    assert mask.tolist() == [[IGNORED, IGNORED, 1, 1]] * 8
    assert splits.majority == 1


def test_arrays_and_a_held_out_tenth(tmp_path):
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 3, (20, 5, 7), dtype=np.uint8)
    images = np.stack([masks] * 3, axis=-1) * 80
    path = tmp_path / "cells.npz"
    np.savez(path, images=images, masks=masks, classes=np.array(["a", "b", "c"]))
    splits = annotated_splits(str(path))
    assert (len(splits.train), len(splits.val)) == (18, 2)
    assert "a seeded tenth (seed 0) held out" in splits.sentence
    assert splits.classes == ("a", "b", "c")
    both = [part.load(i) for part in (splits.train, splits.val) for i in range(len(part))]
    assert all((image[0] == mask * 80).all() for image, mask in both)
    assert sorted(int(image.sum()) for image, _ in both) == sorted(images.astype(int).sum((1, 2, 3)).tolist())
    np.savez(tmp_path / "more.npz", images=images[:4], masks=masks[:4], classes=np.array(["a", "b", "c"]))
    splits = annotated_splits(str(path), str(tmp_path / "more.npz"))
    assert (len(splits.train), len(splits.val)) == (20, 4)
    np.savez(path, images=images, masks=masks, val_images=images[:6], val_masks=masks[:6])
    splits = annotated_splits(str(path))
    assert (len(splits.train), len(splits.val), splits.classes) == (20, 6, ("0", "1", "2"))


@pytest.mark.parametrize(
    "form", ["flat", "images/CITY", "train/images/CITY", "images/train/CITY", "zip", "labels", "beside unlabelled"]
)
def test_the_tenth_is_the_one_that_pretraining_leaves_alone(form, tmp_path, caplog):
    """Whatever classes pretraining sees in the folders or the labels: no image that is asked was learned from."""
    root, count = tmp_path / "towns", 60
    towns = np.arange(count) % 7
    if form == "labels":
        root = tmp_path / "towns.npz"
        images, masks = np.zeros((count, 4, 6, 3), dtype=np.uint8), np.stack([halves(0, 1, 4, 6)] * count)
        np.savez(root, images=images, masks=masks, labels=towns)
    else:
        folders = {"flat": "{kind}", "zip": "{kind}/{town}", "images/CITY": "{kind}/{town}"}
        folders |= {"train/images/CITY": "train/{kind}/{town}", "images/train/CITY": "{kind}/train/{town}"}
        for number, town in enumerate(towns):
            for kind, mode in (("images", "RGB"), ("masks", "L")):
                folder = root / folders.get(form, "train/{kind}").format(kind=kind, town=f"town{town}")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(halves(0, 1, 4, 6)).convert(mode).save(folder / f"{number}.png")
        for number in range(35 * (form == "beside unlabelled")):
            (root / "unlabeled").mkdir(exist_ok=True)
            Image.fromarray(halves(0, 1, 4, 6)).convert("RGB").save(root / "unlabeled" / f"{number}.png")
        root = zipped(root, tmp_path / "towns.zip", "top/") if form == "zip" else root
    splits = annotated_splits(str(root))
    assert "masks are left out" not in caplog.text
    learned = open_images(str(root), "train")
    names = {learned.path(index) for index in range(len(learned))}
    assert len(names) > count / 2
    assert not names & {splits.val.path(index) for index in range(len(splits.val))}
    assert len(splits.train) + len(splits.val) == count
    assert len(splits.val) >= 3


def test_validation_masks_that_ask_nothing(tmp_path):
    masks = np.arange(4 * 25).reshape(4, 5, 5) % 2
    images = np.zeros((4, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "m.npz", images=images, masks=masks, val_images=images, val_masks=np.full_like(masks, 255))
    with pytest.raises(UserError, match="Every pixel of the validation masks of 'm' holds the ignored value"):
        annotated_splits(str(tmp_path / "m.npz"))


def test_the_embedded_objects_have_masks():
    train, val, _ = open_annotated("sample-objects", 24)
    assert val is not None
    assert train.names is not None
    assert train.names[0] == "background"
    assert len(train.names) == 1 + len(samples.sprites())
    image, mask = train.load(5)
    scene = samples.scene("train", 5, 24)
    assert (image.permute(1, 2, 0).numpy() == scene.image).all()
    assert (mask.numpy() == np.where(scene.mask, scene.label + 1, 0)).all()
    assert train.names[scene.label + 1] == train.images.classes[scene.label]  # pyright: ignore[reportOptionalSubscript]


def test_the_embedded_photos_have_none():
    with pytest.raises(UserError, match="photos of `sample` have no masks; give `sample-objects`, or"):
        open_annotated("sample", 32)


def test_examples_too_large_for_memory_are_read_again(root, monkeypatch):
    kept = annotated_splits(str(root)).train
    monkeypatch.setattr(devices, "free_memory", lambda: 0)
    again = annotated_splits(str(root)).train
    for index in range(3):
        assert all(a.equal(b) for a, b in zip(kept.load(index), again.load(index), strict=True))
    (root / "train" / "images" / "1.png").unlink()
    with pytest.raises(UserError, match="cannot now"):
        again.load(1)


def test_broken_images_are_left_out_and_named(root, capsys):
    (root / "train" / "images" / "0.png").write_bytes(b"no")
    pair(root, "train", "more", halves(0, 1))
    splits = annotated_splits(str(root))
    assert len(splits.train) == 3
    assert "Skipped a broken image" in capsys.readouterr().err


def drop_masks(root: Path) -> None:
    for path in root.rglob("annotations/*.png"):
        path.unlink()


def drop_one_mask(root: Path) -> None:
    (root / "train" / "annotations" / "1.png").unlink()


def resize_a_mask(root: Path) -> None:
    Image.fromarray(halves(0, 1, 5, 8)).save(root / "train" / "annotations" / "0.png")


def name_too_few(root: Path) -> None:
    (root / "classes.txt").write_text("wall\ndoor\n")


def name_twice(root: Path) -> None:
    (root / "classes.txt").write_text("wall\ndoor\nwall\n")


def name_too_many(root: Path) -> None:
    (root / "classes.txt").write_text("wall\ndoor\nroof\ntree\n")


def ask_the_unknown(root: Path) -> None:
    pair(root, "val", "new", halves(3, 4))


def leave_one_class(root: Path) -> None:
    for path in root.rglob("annotations/*.png"):
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)


def colour_a_mask(root: Path) -> None:
    Image.new("RGB", (8, 6), (1, 2, 3)).save(root / "train" / "annotations" / "0.png")


def blur_a_mask(root: Path) -> None:
    Image.new("L", (8, 6)).save(root / "train" / "annotations" / "0.png", format="JPEG")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (drop_masks, r"\(train\) has no masks; lay every split out as images/ and annotations/"),
        (drop_one_mask, r"1 of the 3 images of 'rooms' \(train\) have no mask, e.g. train/images/1.png"),
        (resize_a_mask, "0.png is 8 x 5 px and its image 8 x 6"),
        (name_too_few, "holds the value 2, but there are 2 classes, 0 to 1"),
        (name_twice, "must name every class once"),
        (name_too_many, "Class 'tree' of 'rooms' has no training image"),
        (ask_the_unknown, "different classes: '3', '4' only in validation"),
        (leave_one_class, r"hold one class only \('0'\), beside the ignored value"),
        (colour_a_mask, r"is a colour picture \(RGB\)"),
        (blur_a_mask, "is a JPEG file"),
    ],
)
def test_what_is_wrong_is_said(damage, sentence, root):
    damage(root)
    with pytest.raises(UserError, match=sentence):
        annotated_splits(str(root))


def test_wrong_arrays_are_named(tmp_path):
    images = np.zeros((4, 6, 8, 3), dtype=np.uint8)
    path = tmp_path / "cells.npz"
    np.savez(path, images=images, masks=np.zeros((4, 6, 8), np.uint8), classes=["a", "a"])
    with pytest.raises(UserError, match="must name every class once"):
        annotated_splits(str(path))
    for masks, sentence in (
        (None, "has no array `masks`"),
        (
            np.zeros((4, 6, 7), dtype=np.uint8),
            r"`masks` in .* is uint8 \[4, 6, 7\]; it must be whole numbers \[4, 6, 8\]",
        ),
        (np.zeros((4, 6, 8)), "`masks` in .* is float64"),
        (np.full((4, 6, 8), -3), "holds the value -3"),
    ):
        np.savez(path, images=images, **({} if masks is None else {"masks": masks}))  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=sentence):
            annotated_splits(str(path))


def test_no_readable_image(root):
    train, _, _ = open_annotated(str(root), 16)
    for path in (root / "train" / "images").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="Not one image"):
        Examples(train)


def binary(
    root: Path,
    foreground: int,
    background: int = 0,
    suffix: str = "png",
    names: tuple[str, str] = ("images", "annotations"),
) -> Path:
    """Twelve images with masks of two values, without folders of splits."""
    for number in range(12):
        mask = halves(background, foreground)
        for folder, pixels, kind in zip(names, (np.stack([mask] * 3, axis=-1), mask), ("png", suffix), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number:02}.{kind}")
    return root


@pytest.mark.parametrize(("background", "foreground"), [(0, 255), (0, 128), (1, 2), (0, 1), (254, 255)])
def test_classes_are_the_values_that_occur(tmp_path, background, foreground):
    splits = annotated_splits(str(binary(tmp_path / "s", foreground, background)))
    assert splits.classes == (str(background), str(foreground))
    assert splits.train.load(0)[1].tolist() == [[0] * 4 + [1] * 4] * 6
    assert splits.train.pixels.tolist() == [24 * len(splits.train)] * 2


@pytest.mark.parametrize("ignore_index", [255, -1])
@pytest.mark.parametrize("value", [1, 128, 255])
def test_names_go_to_the_values_in_order(tmp_path, value, ignore_index):
    root = binary(tmp_path / "s", value)
    (root / "classes.txt").write_text("\ufeffskin\nlesion\n", encoding="utf-8")
    splits = annotated_splits(str(root), ignore_index=ignore_index)
    assert splits.classes == ("skin", "lesion")
    assert splits.train.load(0)[1][0].tolist() == [0] * 4 + [1] * 4


def test_a_gap_between_the_values_is_no_class(root):
    pair(root, "train", "new", halves(0, 5))
    assert annotated_splits(str(root)).classes == ("0", "1", "2", "5")


def test_values_of_soft_edges_are_no_classes(root):
    pair(root, "train", "new", np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(UserError, match="hold 255 values, more than classes usually are"):
        annotated_splits(str(root))


@pytest.mark.parametrize("suffix", ["tif", "bmp", "gif", "pgm"])
@pytest.mark.parametrize("names", [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("img", "ground_truth")])
def test_masks_of_every_folder_and_format(tmp_path, suffix, names):
    splits = annotated_splits(str(binary(tmp_path / "s", 255, suffix=suffix, names=names)))
    assert splits.classes == ("0", "255")
    assert splits.train.load(0)[1][0].tolist() == [0] * 4 + [1] * 4


def test_a_mask_beside_its_image(tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number:02}.tif")
        Image.fromarray(halves(0, 255)).save(tmp_path / f"{number:02}_mask.tif")
    assert len(open_images(str(tmp_path), "all")) == 12
    splits = annotated_splits(str(tmp_path))
    assert (len(splits.train) + len(splits.val), splits.classes) == (12, ("0", "255"))


def test_two_masks_for_an_image_are_refused(root):
    Image.fromarray(halves(0, 1)).save(root / "train" / "annotations" / "0_mask.png")
    with pytest.raises(UserError, match=r"has two masks for one image, train/annotations/0.png and"):
        annotated_splits(str(root))


def test_two_images_for_a_mask_are_refused(root):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "train" / "images" / "0.jpg")
    with pytest.raises(UserError, match=r"has two images for one mask, train/images/0\.\w+ and train/images/0\."):
        annotated_splits(str(root))


def test_a_third_grey_value_is_not_left_out_in_silence(tmp_path, caplog):
    """Masks drawn as 0, 128 and 255: the last one is usually no class."""
    for number in range(12):
        pair(tmp_path, "train", str(number), np.array([[0, 128], [255, 255]], np.uint8).repeat(4, 0).repeat(4, 1))
    splits = annotated_splits(str(tmp_path))
    assert splits.classes == ("0", "128")
    said = "50.0% of the pixels of its training masks hold 255 and are neither learned nor counted; --ignore-index -1"
    assert said in caplog.text
    assert annotated_splits(str(tmp_path), ignore_index=-1).classes == ("0", "128", "255")


def test_masks_of_an_array_may_be_true_and_false(tmp_path):
    images = np.zeros((20, 6, 8, 3), dtype=np.uint8)
    masks = np.stack([halves(0, 1)] * 20).astype(bool)[..., None]
    np.savez(tmp_path / "m.npz", images=images, masks=masks)
    assert annotated_splits(str(tmp_path / "m.npz")).classes == ("0", "1")
