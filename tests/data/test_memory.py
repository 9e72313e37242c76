"""Images in memory are a source: the same pixels and labels however they are given, told apart by content."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from iwm.data import memory
from iwm.data.decode import BrokenImage
from iwm.data.sources import labelled_splits, open_images, open_pictures, open_splits
from iwm.runtime.errors import UserError


@pytest.fixture(autouse=True)
def _forget():
    with memory.held():
        yield


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 9, 7, 3), dtype=np.uint8)


LABELS = np.arange(30) % 3


class Flips(Dataset[tuple[torch.Tensor, int]]):
    """Mirrors at random, as a dataset with training transforms does."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.pixels[index]
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), index % 3


def kinds(pixels: np.ndarray, folder: Path) -> dict[str, object]:
    """The same images in every form."""
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    pictures = [Image.fromarray(one) for one in pixels]
    paths = [folder / f"{index}.png" for index in range(len(pixels))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return {
        "array": pixels,
        "tensor": tensor,
        "floats": tensor.float() / 255,
        "pictures": pictures,
        "paths": paths,
        "texts": [str(path) for path in paths],
        "arrays": list(pixels),
        "dataset": TensorDataset(tensor, torch.from_numpy(LABELS)),
        "images": open_images(memory.source_of(pixels), "all"),
        "pair": (pixels, LABELS),
    }


def test_the_same_images_have_the_same_content_in_every_form(pixels, tmp_path):
    sources = {}
    for kind, images in kinds(pixels, tmp_path).items():
        labels = None if kind in ("dataset", "pair") else LABELS
        sources[kind] = memory.source_of(images, labels)
        opened = open_images(sources[kind], "all")
        assert opened.labels is not None
        assert opened.labels.tolist() == LABELS.tolist(), kind
        assert opened.classes == ("0", "1", "2")
        for index in (0, 29):
            assert torch.equal(opened.load(index).permute(1, 2, 0), torch.from_numpy(pixels[index])), kind
            assert opened.dimensions(index) == (9, 7)
    assert len(set(sources.values())) == 1
    (source,) = set(sources.values())
    assert open_images(source).name == f"memory-{memory.content_of(source)[:8]}"


@pytest.mark.parametrize("change", ["a pixel", "a label", "the order", "the shape"])
def test_any_change_is_another_content(pixels, change):
    other, labels = pixels.copy(), LABELS.copy()
    if change == "a pixel":
        other[17, 3, 2, 1] ^= 1
    elif change == "a label":
        labels[5] = 0
    elif change == "the order":
        other, labels = other[::-1], labels[::-1]
    else:
        other = other.reshape(30, 7, 9, 3)
    assert memory.source_of(other, labels) != memory.source_of(pixels, LABELS)


def test_hold_outs_are_those_of_any_source(pixels):
    source = memory.source_of(pixels, LABELS, "mine")
    train, val, how = open_splits(source)
    assert (len(train), len(val), train.name) == (27, 3, "mine")
    assert "held out" in how
    both = memory.source_of({"train": (pixels[:20], LABELS[:20]), "test": (pixels[20:], LABELS[20:])})
    train, val, how = open_splits(both)
    assert (len(train), len(val), len(open_images(both))) == (20, 10, 20)
    assert how.endswith("images in memory")


def test_the_tenth_is_the_same_with_labels_and_without(pixels):
    """Or what is measured with labels was pretrained on without them."""
    many = np.tile(pixels, (20, 1, 1, 1))
    many[:, 0, 0, 0] = np.arange(len(many)) % 256
    labels = np.arange(len(many)) % 3
    bare, labelled = (open_splits(memory.source_of(many, given, "mine"))[1] for given in (None, labels))
    places = [[int(tenth.load(index)[0, 0, 0]) for index in range(len(tenth))] for tenth in (bare, labelled)]
    assert places[0] == places[1]


class _Photos:
    """A dataset whose seventh item raises, or has no label; it counts how often it is read."""

    def __init__(self, pixels, seventh, labelled=True):
        self.pixels, self.seventh, self.labelled, self.reads = pixels, seventh, labelled, 0

    def __len__(self):
        return 30

    def __getitem__(self, index):
        self.reads += 1
        if index == 7 and isinstance(self.seventh, Exception):
            raise self.seventh
        picture = Image.fromarray(self.pixels[index])
        return (picture, None if index == 7 and self.seventh is None else index % 2) if self.labelled else picture


@pytest.mark.parametrize(
    ("seventh", "complaint"),
    [
        (OSError("truncated"), r"Image 7 of the _Photos cannot be read \(truncated\); leave it out"),
        (ValueError("bad tile"), r"Image 7 of the _Photos cannot be read \(bad tile\); leave it out"),
        (None, "Image 7 of the _Photos has no label; leave it out"),
    ],
)
def test_an_image_of_a_dataset_without_its_label_is_named(pixels, seventh, complaint):
    with pytest.raises(UserError, match=complaint):
        memory.source_of(_Photos(pixels, seventh))


def test_without_labels_a_broken_image_of_a_dataset_is_left_out_as_of_any_source(pixels):
    images = open_images(memory.source_of(_Photos(pixels, OSError("truncated"), labelled=False)), "all")
    with pytest.raises(BrokenImage, match="truncated"):
        images.load(7)
    assert images.load(8).shape == (3, 9, 7)


def test_a_dataset_is_read_once_for_content_and_labels(pixels):
    photos = _Photos(pixels, "whole")
    source = memory.source_of(photos)
    assert photos.reads <= len(photos) + 2 * memory.CHECKED
    assert source == memory.source_of(pixels, np.arange(30) % 2)


def test_two_paths_are_two_images(pixels, tmp_path):
    paths = (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    for path in paths:
        Image.fromarray(pixels[0]).save(path)
    assert len(open_images(memory.source_of(paths), "all")) == 2


def test_texts_are_classes_and_a_dataset_brings_its_own_names(pixels):
    names = np.array(["cat", "ant", "bee"])[LABELS]
    opened = open_images(memory.source_of(pixels, list(names)), "all")
    assert opened.classes == ("ant", "bee", "cat")
    assert opened.labels is not None
    assert opened.classes is not None
    assert [opened.classes[label] for label in opened.labels] == list(names)
    dataset = TensorDataset(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(LABELS))
    dataset.classes = ["x", "y", "z"]  # pyright: ignore[reportAttributeAccessIssue]
    assert open_images(memory.source_of(dataset), "all").classes == ("x", "y", "z")


def test_labels_are_read_as_those_of_a_file(pixels, tmp_path):
    """Numbers with gaps, a column, and what has no label; a large number makes no classes below it."""
    gaps = np.array([5, 2**40])[np.arange(30) % 2]
    for labels in (gaps, gaps[:, None], np.where(np.arange(30) < 4, -1, gaps), np.array(["b", ""])[np.arange(30) % 2]):
        np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
        sources = memory.source_of(pixels, labels), str(tmp_path / "a.npz")
        held, file = (open_images(source, "all") for source in sources)
        assert held.classes == file.classes
        assert held.labels is not None
        assert file.labels is not None
        assert np.array_equal(held.labels, file.labels)


def test_a_part_of_a_dataset_has_the_names_of_the_whole(pixels):
    whole = TensorDataset(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(LABELS))
    whole.classes = ["cat", "dog", "emu"]  # pyright: ignore[reportAttributeAccessIssue]
    source = memory.source_of({"train": whole, "val": Subset(Subset(whole, range(20)), range(9))})
    train, val, _ = open_splits(source)
    assert train.classes == val.classes == ("cat", "dog", "emu")


def test_an_item_or_a_batch_of_a_dataset_is_a_source(pixels):
    one = open_images(memory.source_of({"image": pixels[3], "label": 1}), "all")
    assert torch.equal(one.load(0), torch.from_numpy(pixels[3]).permute(2, 0, 1))
    assert one.classes == ("1",)
    batch = open_images(memory.source_of({"image": torch.from_numpy(pixels), "label": torch.from_numpy(LABELS)}), "all")
    assert (len(batch), batch.classes) == (30, ("0", "1", "2"))


def test_bfloat16_is_read_as_float32(pixels):
    values = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).bfloat16()
    half, full = (open_images(memory.source_of(each), "all") for each in (values, values.float()))
    assert torch.equal(half.load(0), full.load(0))


def test_without_labels_the_mend_is_that_of_a_session(pixels):
    with pytest.raises(UserError, match=r"has no labels; give labels=, one of every image, or pairs"):
        labelled_splits(memory.source_of(pixels))


class Table:
    """As a table of pandas: columns by their names, and a length."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, name: str) -> None:
        raise KeyError(name)


def test_grey_becomes_rgb_and_one_picture_is_a_source(pixels):
    grey = open_images(memory.source_of(pixels[..., 0]), "all")
    assert torch.equal(grey.load(2), torch.from_numpy(pixels[2, ..., 0]).expand(3, -1, -1))
    assert len(open_pictures(memory.source_of(Image.fromarray(pixels[0])))) == 1
    assert len(open_pictures(memory.source_of(pixels[0]))) == 1


def test_a_pil_image_of_many_bits_is_read_as_a_file_is_or_refused():
    half = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert set(memory.pixels_of(half).unique().tolist()) <= {127, 128}
    with pytest.raises(UserError, match="grey values from -700"):
        memory.pixels_of(Image.fromarray(np.full((4, 4), -700.0, np.float32)))


def test_a_set_travels_to_decoding_processes(pixels):
    opened = open_images(memory.source_of(list(pixels)), "all")
    copy = pickle.loads(pickle.dumps(opened))
    assert torch.equal(copy.load(3), opened.load(3))


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (lambda x: Flips(x), None, "gives another image .* leave out its random transforms"),
        (lambda x: x.astype(np.uint16), None, "has values of uint16"),
        (lambda x: x / 255 - 0.5, None, r"has values from -0.5 to 0.4.*; give uint8, or floats from 0 to 1 \(leave"),
        (lambda x: np.zeros((4, 8, 8, 4), np.uint8), None, r"is an array \[8, 8, 4\]"),
        (lambda x: [], None, "holds no images"),
        (lambda x: ["absent.png"], None, "no image file absent.png"),
        (lambda x: 5, None, "data is a int; give a path, a PyTorch dataset"),
        (lambda x: {"train": x, "extra": x}, None, "has the splits train, extra"),
        (lambda x: x, LABELS[:4], "give 30 whole numbers or words"),
        (lambda x: x, LABELS / 2, "give 30 whole numbers or words"),
        (lambda x: x, LABELS - 2, "holds -2; labels are 0 or more, or -1"),
        (lambda x: {"pixels": x[0], "label": 1}, None, "has the splits pixels, label; give two"),
        (lambda x: Table(), None, r"data is a Table that gives no image 0 \(KeyError 0\); give a PyTorch dataset"),
        (lambda x: (x, LABELS), LABELS, "leave out labels="),
    ],
)
def test_what_is_no_image_is_one_sentence(pixels, images, labels, complaint):
    with pytest.raises(UserError, match=complaint):
        memory.source_of(images(pixels), labels)


def test_a_name_is_part_of_a_files_name(pixels):
    assert memory.source_of(pixels, name="my-set.v2").endswith("/my-set.v2")
    for name in ("a/b", "a,b", ".hidden", "a=b", "two words"):
        with pytest.raises(UserError, match="data_name"):
            memory.source_of(pixels, name=name)
