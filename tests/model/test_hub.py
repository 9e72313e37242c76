"""The mixin of huggingface_hub over our own save and load, on a folder; with a server: tests/exporting/test_push.py."""

from pathlib import Path

import torch
from conftest import tiny

import iwm
from iwm.model import hub, weights


def test_what_is_saved_is_loaded_by_both_faces(tmp_path):
    torch.manual_seed(0)
    model = iwm.ImageWorldModel(tiny()).eval()
    model.save_pretrained(tmp_path)
    for back in (iwm.load(tmp_path), iwm.ImageWorldModel.from_pretrained(tmp_path)):
        assert isinstance(back, iwm.ImageWorldModel)
        assert not back.training
        assert back.settings == model.settings
        assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: iwm\n")


def test_a_model_without_student_is_saved_without_one(tmp_path):
    model = iwm.load("demo")
    model.save_pretrained(tmp_path)
    names = weights.read_tensors(tmp_path, weights.read_meta(tmp_path)).keys()
    assert not any(name.startswith(weights.STUDENT) for name in names)
    back = iwm.ImageWorldModel.from_pretrained(str(tmp_path), device="cpu")
    assert not back.has_student
    assert back.decodes


def test_a_revision_stands_behind_the_name(tmp_path, monkeypatch):
    asked = {}

    def fetched(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    iwm.ImageWorldModel(tiny()).save_pretrained(tmp_path)
    assert hub.fetch("user/name@v1") == Path(tmp_path)
    assert (asked["name"], asked["revision"]) == ("user/name", "v1")
