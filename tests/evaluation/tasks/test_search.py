"""The nearest are those of an exact search, and an action finds what the change makes of an image."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import noise
from PIL import Image

import iwm
from evaluation.planted import exported
from iwm.data.sources import open_images
from iwm.evaluation.tasks.search import Gallery, colours, cosines, keys_of
from iwm.run_folder import RunFolder
from iwm.runtime.algebra import standardisation
from iwm.runtime.errors import UserError

SPEED = {"speed.precision": "fp32", "speed.device": "cpu"}


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return exported(tmp_path / "run")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two folders of noise, of which one image is an exact copy of another."""
    noise(tmp_path / "images" / "a", 12)
    source = noise(tmp_path / "images" / "b", 5).parent
    (source / "b" / "copy.png").write_bytes((source / "a" / "007.png").read_bytes())
    return str(source)


def test_cosines_are_those_of_all_rows_at_once():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((501, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 1000, 0, 5, 0, 0]
    rows[:, 5] = 3.0  # hardly varies: keeps its scale
    rows = rows.astype(np.float32)
    query = rows[17] + 0.1
    mean, deviation = standardisation(torch.from_numpy(rows).double())
    wanted = torch.nn.functional.cosine_similarity(
        (torch.from_numpy(query).double() - mean) / deviation, (torch.from_numpy(rows).double() - mean) / deviation
    )
    np.testing.assert_allclose(cosines(lambda: np.split(rows, [100, 101, 400]), query), wanted, atol=2e-4)


def test_a_query_that_is_no_number_finds_nothing():
    rows = np.eye(3, dtype=np.float32)
    gallery = Gallery(lambda: [rows], [0, 1, 2], ["a", "b", "c"], ["", "", ""], ["a", "b", "c"])
    assert gallery.nearest(np.full(3, np.nan, np.float32), "", 2) == []


def test_the_image_itself_is_left_out_and_its_copy_comes_first(run, folder, tmp_path):
    result = iwm.search(run, folder, like=f"{folder}/a/007.png", nearest=3, pixels=True, **SPEED)
    assert Path(result.nearest[0]["path"]).name == "copy.png"
    assert result.nearest[0]["score"] == pytest.approx(1, abs=1e-4)
    assert result["nearest_by_pixels"][0]["path"] == result.nearest[0]["path"]
    assert (result.searched, len(result.nearest), result["itself_in_the_source"]) == (18, 3, True)
    assert result.nearest[0]["label"] == "b"
    assert result.path.parent == RunFolder(Path(run)).eval
    assert result.path.with_suffix(".png").is_file()
    scores = [hit["score"] for hit in result.nearest]
    assert scores == sorted(scores, reverse=True)


def test_a_file_of_embeddings_gives_the_same_answer(run, folder, tmp_path, monkeypatch):
    options = {"like": f"{folder}/a/003.png", "nearest": 5}
    plain = iwm.search(run, folder, **options, **SPEED)
    file = tmp_path / "f.npz"
    monkeypatch.chdir(Path(folder).parent)
    iwm.embed(run, "images", out=file, **SPEED)  # typed otherwise, the same images
    monkeypatch.chdir(tmp_path.parent)
    again = iwm.search(run, folder, features=str(file), **options, **SPEED)
    assert [hit["row"] for hit in again.nearest] == [hit["row"] for hit in plain.nearest]
    with pytest.raises(UserError, match="is not in the space that is predicted"):
        iwm.search(run, folder, features=str(file), action="hue=0.1", **options, **SPEED)
    with pytest.raises(UserError, match="says how the images are embedded; leave out --pooling"):
        iwm.search(run, folder, features=str(file), pooling="max", **options, **SPEED)
    other = noise(tmp_path / "others", 3)
    with pytest.raises(UserError, match="give the source it was written of"):
        iwm.search(run, str(other), features=str(file), **options, **SPEED)
    (tmp_path / "second").mkdir()
    with pytest.raises(UserError, match="other weights"):
        iwm.search(exported(tmp_path / "second", seed=1), folder, features=str(file), **options, **SPEED)
    iwm.embed(run, folder, out=file, action="hue=0.1", **SPEED)
    with pytest.raises(UserError, match="holds images as they look after hue"):
        iwm.search(run, folder, features=str(file), **options, **SPEED)


def test_a_file_of_embeddings_of_images_that_were_changed_since_is_refused(run, folder, tmp_path):
    options, file = {"like": f"{folder}/a/003.png", "nearest": 5}, tmp_path / "f.npz"
    iwm.embed(run, folder, out=file, **SPEED)
    noise(Path(folder) / "c", 1)
    with_new_one = iwm.search(run, folder, features=file, **options, **SPEED)
    assert (with_new_one.searched, with_new_one["left_out"]) == (18, 1)
    changed = Path(folder, "a", "001.png")
    Image.new("RGB", (32, 32), "red").save(changed)
    with pytest.raises(UserError, match=r"Images of .* were changed since .*f\.npz was written; run iwm embed again"):
        iwm.search(run, folder, features=file, **options, **SPEED)
    iwm.embed(run, folder, out=file, **SPEED)
    assert iwm.search(run, folder, features=file, **options, **SPEED).searched == 19


def test_an_action_finds_the_copy_that_was_changed_so(tmp_path):
    """Photos in the package, of which some have copies of two other hues: told which of the two is looked for, the
    model in the package finds it first; untold it cannot know which."""
    photos, world = open_images("sample", "val"), iwm.load("demo")
    folder = tmp_path / "photos"
    folder.mkdir()
    for row in range(40):
        picture = photos.load(row)
        for name, hue in {"": 0.0, "-up": 0.1, "-down": -0.1}.items() if row < 8 else [("", 0.0)]:
            changes = world.space.reach(world.action(hue=hue)[None])
            changed = world.space.apply(picture[None].float() / 255, changes)[0]
            pixels = (changed.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{row:02}{name}.png")
    gallery = iwm.embed("demo", folder, space="target", **SPEED)
    asked = {hue: iwm.embed("demo", folder, action=f"hue={hue}", **SPEED) for hue in (0.1, -0.1, 0)}
    names = [Path(path).name for path in gallery.paths]
    firsts = {hue: [] for hue in asked}
    for hue, queries in asked.items():
        for row in range(8):
            place = names.index(f"{row:02}.png")
            scores = cosines(lambda: [gallery.embeddings], queries.embeddings[place])
            scores[place] = -1
            firsts[hue].append(names[int(scores.argmax())])
    wanted = {hue: [f"{row:02}-{name}.png" for row in range(8)] for hue, name in ((0.1, "up"), (-0.1, "down"))}
    assert sum(map(str.__eq__, firsts[0.1], wanted[0.1])) >= 7
    assert sum(map(str.__eq__, firsts[-0.1], wanted[-0.1])) >= 7
    assert sum(map(str.__eq__, firsts[0], wanted[0.1])) <= 6
    first = iwm.search("demo", folder, like=folder / "00.png", action="hue=0.1", out=tmp_path / "out", **SPEED).nearest[
        0
    ]
    assert Path(first["path"]).name == "00-up.png"


def test_with_an_action_the_colours_are_those_of_the_changed_image(run, folder):
    result = iwm.search(run, folder, like=f"{folder}/a/003.png", action="brightness=-0.4", pixels=True, **SPEED)
    plain = iwm.search(run, folder, like=f"{folder}/a/003.png", pixels=True, **SPEED)
    assert result["nearest_by_pixels"] != plain["nearest_by_pixels"]
    assert result["encoder"] == "predicted, brightness -0.40"


def test_colours_are_area_means():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = pixels.double().view(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1) / 255
    np.testing.assert_allclose(colours(pixels), wanted, atol=1e-6)


def test_a_source_of_the_image_alone_is_refused(run, folder, tmp_path, monkeypatch):
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(f"{folder}/a/001.png", tmp_path / "alone"))
    wanted = "has no readable image beside .*001.png itself; give a source of more images"
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "of_images", lambda *words: pytest.fail("images were encoded"))
        with pytest.raises(UserError, match=wanted):
            iwm.search(run, str(alone.parent), like=str(alone), **SPEED)
    (alone.parent / "002.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=wanted):
        iwm.search(run, str(alone.parent), like=str(alone), **SPEED)
    found = iwm.search(run, str(alone.parent), like=f"{folder}/a/002.png", **SPEED)
    assert [hit["path"] for hit in found["nearest"]] == [str(alone)]


def test_a_model_whose_numbers_are_broken_finds_nothing_near(run, folder, monkeypatch):
    monkeypatch.setattr(Gallery, "nearest", lambda *words: [])
    with pytest.raises(UserError, match="are not finite, so nothing is nearest"):
        iwm.search(run, folder, like=f"{folder}/a/001.png", **SPEED)


def test_embedded_images_keep_their_names():
    assert keys_of(["sample/s1.jpg"], "sample") == ["sample/s1.jpg"]
    assert keys_of(["photos/1.jpg"], "photos") == [str(Path("photos/1.jpg").absolute())]


def test_the_image_itself_is_left_out_where_a_link_leads_to_it(run, folder, tmp_path):
    """Of the folder, of one above it, and of a file of embeddings; images that are links are images of their own."""
    link = tmp_path / "link"
    link.symlink_to(folder)
    like = f"{folder}/a/001.png"
    assert iwm.search(run, str(link), like=like, **SPEED)["itself_in_the_source"]
    file = tmp_path / "f.npz"
    iwm.embed(run, folder, out=str(file), **SPEED)
    assert iwm.search(run, str(link), like=like, features=str(file), **SPEED)["itself_in_the_source"]
    first, second = (tmp_path / name for name in ("1.png", "2.png"))
    for path in (first, second):
        path.symlink_to(like)
    assert len({*keys_of([str(first), str(second), like], folder)}) == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"like": "nowhere.png"}, "There is no image 'nowhere.png'"),
        ({"pooling": "tokens"}, "no single vector to search by"),
        ({"action": "hue"}, "'hue' is no change"),
        ({"features": "nowhere.npz"}, "There is no file nowhere.npz"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(run, folder, options, complaint):
    with pytest.raises(UserError, match=complaint):
        iwm.search(run, folder, **{"like": f"{folder}/a/001.png", **options}, **SPEED)
