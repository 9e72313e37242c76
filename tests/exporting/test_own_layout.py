"""Our own layout: every tensor, the decoder, no paths of this machine; published encoders are named and fetched."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders  # noqa: F401 - registers them
import torch
from conftest import tiny
from safetensors.torch import load_file

import iwm
from exporting.models import classifier, foreign, options, world
from iwm import config
from iwm.evaluation.tasks.classifier import load_classifier
from iwm.exporting.format import Request
from iwm.exporting.own_layout import OwnLayout
from iwm.model import architecture, pretrained, weights
from iwm.run_folder import trainings_of
from iwm.runtime.errors import UserError


def exported(run: Path | str, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    OwnLayout().write(Request(options(run, format="safetensors", **changes)), folder)
    return folder


def same(one: iwm.ImageWorldModel, other: iwm.ImageWorldModel) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def test_it_is_the_same_model_with_its_decoder_and_without_paths(tmp_path):
    secret = tmp_path / "clinic" / "patients"
    run = world(
        tmp_path / "run",
        decoder=True,
        data=config.Data(image_size=16, source=f"{secret}/eyes,{secret}/more.zip"),
        run=replace(tiny().run, out=str(secret)),
    )
    noted = Path(run) / "model" / "config.json"
    record = {"images": 40, "sha256": "ab"}
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "training_images": [record, None]}))
    assert [(each.source, each.record) for each in trainings_of(str(run))] == [(f"{secret}/eyes", record)]
    folder = exported(run, tmp_path / "out")
    assert "clinic" not in (folder / "config.json").read_text()
    assert trainings_of(str(folder)) == [], "of images whose place is left out"
    model, before = iwm.load(folder), iwm.load(run)
    assert same(model, before)
    assert model.has_student
    assert model.settings.data.source == "eyes,more.zip"
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model.decode(model.target(images)), before.decode(before.target(images)))


def test_the_model_in_the_package_stays_as_it_is(tmp_path):
    folder = exported("demo", tmp_path / "out")
    assert same(iwm.load(folder), iwm.load("demo"))
    assert iwm.load(folder).decodes
    assert not iwm.load(folder).has_student


def test_a_small_one_has_a_quarter_of_the_bytes_and_a_decoder_that_belongs_to_it(tmp_path):
    run = world(tmp_path / "run", decoder=True)
    whole, small = exported(run, tmp_path / "whole"), exported(run, tmp_path / "small", small=True)
    sizes = [(folder / weights.TENSORS).stat().st_size for folder in (whole, small)]
    assert sizes[1] < sizes[0] / 2.5
    model = iwm.load(small)
    assert model.decodes
    assert not model.has_student
    assert torch.equal(model.predictor.embed.weight, iwm.load(run).predictor.embed.weight.bfloat16().float())


def test_a_finetuned_classifier_is_copied_whole(tmp_path):
    folder = classifier(world(tmp_path / "run"), tmp_path / "classifier")
    copied = exported(folder, tmp_path / "out")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(load_classifier(copied)(images), load_classifier(folder)(images))
    assert load_classifier(copied).names == ("a", "b/c", "d")
    (how,) = OwnLayout().usage(copied, {"finetuned": "classifier"})
    assert how == f"In Python: iwm.load_classifier('{copied}'); iwm predict takes {copied}."
    with pytest.raises(UserError, match=r"a finetuned classifier, no world model; load it with iwm\.load_classifier"):
        iwm.load(copied)
    assert json.loads((copied / "config.json").read_text())["finetuned"] == {"data": "photos"}
    with pytest.raises(UserError, match="--small is of world models"):
        exported(folder, tmp_path / "small", small=True)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Weights that `timm:vit_tiny_patch16_224` then has, in place of those that timm would fetch."""
    settings = of_others()
    torch.manual_seed(3)
    body = architecture.timm_body(settings.architecture, 32)
    held = {name: value.clone() for name, value in body.state_dict().items()}

    def fetched(self: pretrained.Origin) -> Any:
        body.load_state_dict(held)
        return body

    monkeypatch.setattr(pretrained.Origin, "body", fetched)
    return held


def of_others(**changes: Any) -> config.Encoder:
    """A published encoder in miniature."""
    small = {"patch_size": 8, "img_size": 32, "depth": 3, "embed_dim": 32, "num_heads": 2}
    name = "vit_tiny_patch16_224"
    encoder = config.Encoder(name=f"timm:{name}", train="none", **changes)
    return architecture.described(encoder, architecture.written(name, small), None)


@pytest.mark.parametrize("small", [False, True])
def test_a_published_encoder_is_named_and_fetched_again(tmp_path, published, small, capsys):
    settings = tiny(data=config.Data(image_size=32), encoder=of_others())
    model = iwm.ImageWorldModel(settings).eval()
    pretrained.load_into(model)
    weights.export(model, tmp_path / "run" / "model")
    folder = exported(tmp_path / "run", tmp_path / "out", small=small)
    assert "timm:vit_tiny_patch16_224 as it is published: it is named, and fetched" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not any(name.startswith(weights.TEACHER) for name in load_file(folder / weights.TENSORS))
    loaded, images = iwm.load(folder), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode(images).values, model.encode(images).values)
    assert same(loaded, iwm.load(tmp_path / "run")) or small
    published["norm.weight"].add_(0.01)
    with pytest.raises(UserError, match="timm:vit_tiny_patch16_224 has other weights now than those this predictor"):
        iwm.load(folder)


@pytest.mark.parametrize("changes", [{"train": "last-1"}, {"train": "none"}])
def test_an_encoder_that_nobody_else_has_is_copied(tmp_path, changes):
    run = world(tmp_path / "run", **foreign("tiny_registers", 32, **changes))
    assert same(iwm.load(exported(run, tmp_path / "out")), iwm.load(run))
    assert any(name.startswith(weights.TEACHER) for name in load_file(tmp_path / "out" / weights.TENSORS))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/photos", "photos"),
        ("photos.zip", "photos.zip"),
        ("a/b,c/d.npz", "b,d.npz"),
        ("timm:vit_small,weights=/home/me/w.pth", "timm:vit_small,weights=w.pth"),
        ("hf-hub:user/name", "hf-hub:user/name"),
        ("hf:user/name:train", "hf:user/name:train"),
        ("memory:abc/noise", "memory:abc/noise"),
        (r"C:\\me\\photos", "photos"),
        ("mine/set.py:SET", "set.py:SET"),
    ],
)
def test_paths_are_cut_to_their_last_name(text, left):
    assert weights.without_paths({"a": [text, 3, None]}) == {"a": [left, 3, None]}
