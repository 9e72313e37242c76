"""Exported weights: what comes back, what a crash or damage leaves, and how a RUN's weights are found."""

import hashlib
import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

from iwm import run_folder
from iwm.evaluation.tasks.classifier import load_classifier
from iwm.evaluation.tasks.segmenter import load_segmenter
from iwm.model import weights
from iwm.model.vit import Attention
from iwm.model.weights import export, write_weights
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError


def made(seed: int = 0) -> ImageWorldModel:
    """A tiny model as drawn."""
    torch.manual_seed(seed)
    return ImageWorldModel(tiny())


def torn_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "save_file", save_file)


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def test_an_exported_model_is_loaded_for_use_from_any_of_its_paths(tmp_path):
    model = made(seed=3)
    export(model.train(), tmp_path / "run" / "model", step=8)
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["step"] == 8
    for path in ("run", "run/model", "run/model/model.safetensors", "run/model/config.json"):
        loaded = run_folder.load_model(str(tmp_path / path))
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.settings == model.settings
        assert loaded.space.spec() == model.space.spec()
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_small_export_is_the_same_model_rounded_and_without_its_student(tmp_path, images):
    model = made(seed=3).eval()
    model.encoder.load_state_dict(made(seed=4).encoder.state_dict())
    model.target_norm.mean += 0.1234567
    export(model, tmp_path / "whole")
    export(model, tmp_path / "small", rounded=True)
    sizes = [(tmp_path / name / weights.TENSORS).stat().st_size for name in ("whole", "small")]
    assert sizes[1] < sizes[0] / 2.5
    small = run_folder.load_model(tmp_path / "small")
    for name, value in model.state_dict().items():
        if name.startswith("target_norm."):
            assert torch.equal(small.state_dict()[name], value), name
        elif not name.startswith("encoder."):
            assert torch.equal(small.state_dict()[name], value.bfloat16().float()), name
    assert torch.equal(small.encoder.patch_embed.proj.weight, small.target_encoder.patch_embed.proj.weight)
    with torch.no_grad():
        close = small.encode(images).values - model.encode(images).values
        assert close.abs().max() < 0.1
        model.encode(images, student=True)
        with pytest.raises(UserError, match="hold the EMA encoder only, no student"):
            small.encode(images, student=True)


def test_the_action_space_is_the_exported_one_and_not_made_anew(tmp_path):
    """Whatever a later version makes of the same settings."""
    model = made()
    export(model, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["settings"]["actions"]["level"] = "strong"
    path.write_text(json.dumps(content))
    assert run_folder.load_model(str(tmp_path)).space.spec() == model.space.spec()


def test_tensors_of_any_memory_layout_are_written_as_they_read(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    write_weights(tmp_path, {"turned": whole.T, "part": whole[1:3, ::2]}, {"of": "a test"})
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[1:3, ::2])
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "format": 1,
        "sha256": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest(),
        "of": "a test",
    }


def test_a_crash_while_exporting_leaves_the_old_weights(tmp_path, monkeypatch):
    export(made(seed=0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torn_tensors(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        export(made(seed=1), tmp_path, step=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_of_one_write_are_not_read_with_tensors_of_another(tmp_path):
    """As a crash between the two files would leave them, here of models of equal shapes."""
    export(made(seed=0), tmp_path, step=1)
    before = (tmp_path / "model.safetensors").read_bytes()
    export(made(seed=1), tmp_path, step=2)
    (tmp_path / "model.safetensors").write_bytes(before)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or of another write than config\.json"):
        run_folder.load_model(str(tmp_path))
    edit(tmp_path / "config.json", sha256=None)  # as older versions have written it
    run_folder.load_model(str(tmp_path))


@pytest.mark.parametrize("number", [99, 2, 0, "one", None])
def test_weights_of_an_unknown_format_are_refused(tmp_path, number):
    export(made(), tmp_path)
    edit(tmp_path / "config.json", format=number)
    if number is None:  # not noted at all: the first one
        run_folder.load_model(str(tmp_path))
        return
    sentence = f"The weights in {tmp_path} are of format {number!r}, this iwm reads formats up to 1; update iwm."
    for load in (run_folder.load_model, load_classifier, load_segmenter):
        with pytest.raises(UserError, match=re.escape(sentence)):
            load(str(tmp_path))


def test_identity_is_that_of_the_weights(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        export(made(seed=seed), tmp_path / name, called=name)
    one, same, other = (run_folder.identity(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert one == hashlib.sha256((tmp_path / "one" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ([], "There is no run at .*run; give the --out folder"),
        (["run/config.yaml"], "is not a run: it has no model/model.safetensors and config.json"),
        (["run/model/model.safetensors"], "is not a run"),
        (["run/model/config.json"], "is not a run"),
        (["run/checkpoints/step-00000003/state.json"], "has no finished weights yet"),
    ],
)
def test_what_is_no_run_is_said(tmp_path, there, sentence):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=sentence):
        run_folder.find_weights(str(tmp_path / "run"))


ODD = {
    "no settings": {"settings": None},
    "a list": {"settings": []},
    "no actions": {"actions": None},
    "words as actions": {"actions": "none"},
}


@pytest.mark.parametrize("damage", ["cut", "torn text", *ODD, "no heads", "no weight", "another size"])
def test_weights_that_cannot_be_read_are_named(tmp_path, damage):
    export(made(), tmp_path / "model")
    weights, text = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "torn text":
        text.write_text(text.read_text()[:-100])
    elif damage in ODD:
        edit(text, **ODD[damage])
    elif damage == "no heads":
        settings = json.loads(text.read_text())["settings"]
        edit(text, settings=settings | {"encoder": settings["encoder"] | {"heads": 0}})
    else:
        tensors = load_file(weights)
        last = tensors.pop("predictor.embed.weight")
        narrower = {"predictor.embed.weight": last[:, :-1].contiguous()}
        save_file(tensors if damage == "no weight" else tensors | narrower, weights)
    with pytest.raises(UserError, match=r"The weights in .*model cannot be read \(.*\); export them again"):
        run_folder.load_model(str(tmp_path))


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    export(made(), tmp_path / "run" / "model")
    assert run_folder.find_weights("~/run") == tmp_path / "run" / "model"


def test_weights_of_the_hub_are_those_two_files_or_a_sentence(tmp_path, monkeypatch):
    export(made(), tmp_path)
    asked = []

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, sorted(allow_patterns)))
        if name == "user/absent":
            raise OSError("no route to host\nand more")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert run_folder.find_weights("hf-hub:user/name") == tmp_path
    assert asked == [("user/name", ["config.json", "decoder.safetensors", "model.safetensors"])]
    with pytest.raises(UserError, match=r"hf-hub:user/absent cannot be fetched \(no route to host\); give a run"):
        run_folder.find_weights("hf-hub:user/absent")


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_an_opened_world_takes_the_attention_of_its_precision(tmp_path, precision, fused):
    export(made(), tmp_path)
    model = run_folder.open_world(str(tmp_path), Session(torch.device("cpu"), precision))
    kernels = [layer.fused_attn for layer in model.modules() if isinstance(layer, Attention)]
    assert kernels
    assert set(kernels) == {fused}
    assert not model.training
