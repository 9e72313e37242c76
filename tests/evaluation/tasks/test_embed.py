"""Embeddings are the encoder's own numbers, each beside its image; what is left out is said."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import pictures_file
from picture_files import noise

import iwm
from evaluation.planted import exported
from iwm import cli
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.evaluation.tasks import embed, features
from iwm.evaluation.tasks.embedding_file import EmbeddingFile
from iwm.runtime.errors import UserError

SPEED = {"speed.precision": "fp32", "speed.device": "cpu"}


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return exported(tmp_path / "run")


def pixels_of(source: str) -> torch.Tensor:
    return load_all(open_images(source, "all"), 16)[0]


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"layer": 1, "pooling": "max"}, {"pooling": "2x2"}])
def test_the_numbers_are_those_that_probes_see(run, pictures, options):
    embedding = iwm.embed(run, pictures, **options, **SPEED)
    pooling = options.get("pooling", "mean")
    blocks = {name: value for name, value in options.items() if name != "pooling"}
    wanted = features.encode(features.open_encoder(run, **blocks), pixels_of(pictures), pooling=pooling)
    np.testing.assert_allclose(np.asarray(embedding), wanted, atol=1e-6)
    assert len(embedding) == 80
    assert embedding.paths[0].endswith("pictures.npz:images[0]")
    assert embedding.labels[:3] == ["0", "1", "0"]
    assert embedding.path is None


def test_all_tokens_have_a_place_each(run, pictures):
    embedding = iwm.embed(run, pictures, pooling="tokens", **SPEED)
    assert embedding.embeddings.shape == (80, 16, 32)
    tokens = iwm.load(run).encode(pixels_of(pictures)).values.detach()
    np.testing.assert_allclose(embedding.embeddings, tokens, atol=2e-3)


@torch.no_grad()
def test_target_space_and_predictions_are_the_models_own(run, pictures):
    world, pixels = iwm.load(run), pixels_of(pictures)
    target = iwm.embed(run, pictures, space="target", **SPEED)
    np.testing.assert_allclose(target.embeddings, world.target(pixels).pooled, atol=1e-5)
    predicted = iwm.embed(run, pictures, action="hue=0.1,grayscale=1", **SPEED)
    future = world.predict(world.encode(pixels), world.action(hue=0.1, grayscale=1))
    np.testing.assert_allclose(predicted.embeddings, future.pooled, atol=1e-5)
    assert predicted.facts["action"] == "hue=0.1,grayscale=1"


def test_the_class_token_is_timms(pictures, tmp_path):
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    name = f"timm:test_vit,weights={tmp_path / 'w.pth'}"
    images = open_images(pictures, "all")
    pixels = load_all(images, 160)[0]
    mean, std = (torch.tensor(model.default_cfg[stat]).view(3, 1, 1) for stat in ("mean", "std"))
    with torch.no_grad():
        wanted = model.forward_features((pixels[:4].float() / 255 - mean) / std)[:, 0]
    ours = iwm.embed(name, pictures, pooling="class", **SPEED)
    np.testing.assert_allclose(ours.embeddings[:4], wanted, atol=1e-5)
    assert iwm.embed(name, pictures, pooling="class", layers=2, **SPEED).embeddings.shape == (80, 2 * wanted.shape[1])
    with pytest.raises(UserError, match="has no class token; give another --pooling"):
        iwm.embed("timm:test_resnet,weights=random", pictures, pooling="class", **SPEED)


def test_a_file_is_written_piece_by_piece_and_broken_images_are_counted(run, tmp_path, monkeypatch, capsys, caplog):
    source = noise(tmp_path / "images" / "a", 9, broken=(4,)).parent
    noise(source / "b", 2)
    monkeypatch.setattr(embed, "AT_ONCE", 3 * 3 * 16 * 16)
    where = ["--speed.precision", "fp32", "--speed.device", "cpu"]
    with caplog.at_level(logging.WARNING, "iwm"):
        assert cli.main(["embed", run, str(source), "--out", str(tmp_path / "f.npz"), *where]) == 0
    printed = capsys.readouterr().err
    assert "1 broken image was left out" in printed
    file = EmbeddingFile.open(tmp_path / "f.npz")
    assert (len(file), file.facts["left_out"]) == (10, 1)
    assert (file.labels[0], file.labels[-1]) == ("a", "b")
    assert not [path for path in file.paths if path.endswith("004.png")]
    whole, kept = load_all(open_images(str(source), "all"), 16)
    wanted = features.encode(features.open_encoder(run), whole)
    np.testing.assert_allclose(np.concatenate(list(file.pieces())), wanted, atol=1e-6)
    assert len(kept) == 10


def test_images_in_memory_are_embedded(run):
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    embedding = iwm.embed(run, images, labels=["x", "y"] * 6, **SPEED)
    assert (embedding.embeddings.shape, embedding.labels.count("x")) == ((12, 32), 6)


def test_a_file_written_again_is_not_taken_for_the_first(run, pictures, tmp_path):
    first = iwm.embed(run, pictures, out=str(tmp_path / "f.npz"), **SPEED)
    again = iwm.embed(run, pictures, out=str(tmp_path / "f.npz"), **SPEED)
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    first = iwm.embed(run, pictures, out=str(tmp_path / "f.npz"), **SPEED)
    iwm.embed(run, pictures, out=str(tmp_path / "f.npz"), pooling="max", **SPEED)
    with pytest.raises(UserError, match="written again since, with other embeddings"):
        _ = first.embeddings


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"out": "f.csv"}, "no suffix that says how to write it"),
        ({"action": "hu=0.1"}, "did you mean 'hue'"),
        ({"layers": 1, "action": "hue=0.1"}, "--layers belongs to the encoder's tokens"),
        ({"layers": 1, "layer": 1}, "give one of the two"),
        ({"layer": 9}, "no layer 9"),
        ({"pooling": "class"}, "has no class token"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(run, pictures, options, complaint):
    with pytest.raises(UserError, match=complaint):
        iwm.embed(run, pictures, **options, **SPEED)


def test_what_is_embedded_is_json_too(run, tmp_path, capsys):
    source, where = str(pictures_file(tmp_path / "p.npz")), ["--speed.precision", "fp32", "--speed.device", "cpu"]
    assert cli.main(["embed", run, source, "--out", str(tmp_path / "f.npz"), "--json", *where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["shape"], document["path"]) == (80, [32], str(tmp_path / "f.npz"))
    assert "paths" not in document
    assert cli.main(["embed", run, source, "--json", *where]) == 0
    assert len(json.loads(capsys.readouterr().out)["embeddings"]) == 80
    assert cli.main(["embed", run, source, "--out", str(tmp_path / "f.npz"), "--quiet", *where]) == 0
    assert "Embedding(80 images, 32 numbers each, path=" in capsys.readouterr().out


def test_the_command_line_asks_for_a_file(run, tmp_path, capsys):
    assert cli.main(["embed", run, str(pictures_file(tmp_path / "p.npz"))]) == 2
    assert "Give --out FILE.parquet" in capsys.readouterr().err


def test_no_other_file_is_written_over(tmp_path, capsys):
    """A source may be an .npz too, and --quiet needs a file all the same."""
    source = tmp_path / "data.npz"
    np.savez(source, images=np.zeros((3, 16, 16, 3), dtype=np.uint8))
    before = source.read_bytes()
    assert cli.main(["embed", "demo", str(source), "--out", str(source)]) == 2
    assert "data.npz holds something else than embeddings; give another" in " ".join(capsys.readouterr().err.split())
    assert source.read_bytes() == before
    assert cli.main(["embed", "demo", str(source), "--quiet"]) == 2
    assert "Where shall the embeddings go?" in capsys.readouterr().err
