"""`iwm export`: what it writes, says and refuses; a format of one's own."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import iwm
from exporting.models import world
from iwm import cli
from iwm.exporting import FORMATS, export, format
from iwm.exporting.format import ExportFormat, Request
from iwm.runtime.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return world(tmp_path / "run")


def test_from_python_it_returns_what_its_file_holds(run, tmp_path):
    result = iwm.export(run, format="torch", out=tmp_path / "out", part=("predictor",))
    assert (result.format, list(result.files)) == ("torch", ["predictor.pt2"])
    assert result.largest_difference is not None
    assert result.largest_difference < 1e-5
    content = json.loads((tmp_path / "out" / "export.json").read_text())
    assert result.path == tmp_path / "out" / "export.json"
    assert content == dict(result.content)
    assert content["settings"]["run"] == str(run)
    assert {"command", "hardware", "date", "versions"} <= content.keys()
    assert "predictor.pt2" in str(result)
    assert content["parts"]["predictor"]["action"][0]["name"] == "brightness"


def test_an_export_replaces_its_own_files_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        iwm.export(run, format="safetensors", out=out)
    assert iwm.load(out).has_student
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine holds something else than an export; give a new --out FOLDER\."):
        iwm.export(run, format="safetensors", out=tmp_path / "mine")
    with pytest.raises(UserError, match=r"notes\.txt is a file; give another"):
        iwm.export(run, format="safetensors", out=tmp_path / "mine" / "notes.txt")
    with pytest.raises(UserError, match=r"model\.onnx is the name of a file; give a folder"):
        iwm.export(run, format="onnx", out=tmp_path / "model.onnx")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_of_an_earlier_export_no_file_is_left(run, tmp_path, capsys):
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    iwm.export(world(tmp_path / "shown", decoder=True), format="safetensors", out=out)
    assert (out / "decoder.safetensors").is_file()
    for path in (out / "notes.txt", outside, out / "edited.txt"):
        path.write_text("mine")
    (out / "folder").mkdir()
    there = json.loads((out / "export.json").read_text())
    planted = {"edited.txt": 2, "gone": 4, "../outside.txt": 4, "folder": 4, ".": 4}
    (out / "export.json").write_text(json.dumps(there | {"files": there["files"] | planted}))
    iwm.export(run, format="safetensors", out=out)
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("model.safetensors", "config.json", "export.json", ".iwm-output"),
        *("notes.txt", "edited.txt", "folder"),
    }
    assert outside.is_file()
    assert "edited.txt is of an earlier export and was changed since; it is kept" in " ".join(
        capsys.readouterr().out.split()
    )
    (out / "export.json").write_text(json.dumps(there | {"files": "damaged"}))
    iwm.export(run, format="safetensors", out=out)


@pytest.mark.parametrize("older", [False, True])
def test_an_edited_model_card_is_not_written_over(run, tmp_path, older):
    out = tmp_path / "out"
    for _ in range(2):
        iwm.export(run, format="hub", out=out, photos=0)
    card, result = out / "README.md", out / "export.json"
    text = card.read_text()
    edited = text.upper() + "Mine." * older  # exports of earlier versions say how long the card was, and no more
    if older:
        content = json.loads(result.read_text())
        result.write_text(json.dumps({name: content[name] for name in content if name != "card_sha256"}))
    card.write_text(edited)
    with pytest.raises(UserError, match=r"README\.md was edited since it was exported; move it away, or give a new"):
        iwm.export(run, format="hub", out=out, photos=0)
    assert card.read_text() == edited
    card.rename(tmp_path / "mine.md")
    iwm.export(run, format="hub", out=out, photos=0)
    assert card.read_text() == text


def test_what_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def broken(self: Any, request: Request, folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise UserError("It went wrong.")

    monkeypatch.setattr(FORMATS["timm"], "write", broken)
    with pytest.raises(UserError, match="It went wrong"):
        iwm.export(run, format="timm", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_export_left_is_no_hindrance(run, tmp_path):
    (tmp_path / "out" / ".12-34.part").mkdir(parents=True)
    assert (iwm.export(run, format="timm", out=tmp_path / "out").path).is_file()


def test_a_format_that_writes_folders_is_refused(run, tmp_path, monkeypatch):
    """They could not be replaced by a second export."""
    monkeypatch.setattr(FORMATS["timm"], "write", lambda self, request, folder: (folder / "graphs").mkdir() or {})
    with pytest.raises(UserError, match="--format timm writes the folder graphs; an export holds files alone"):
        iwm.export(run, format="timm", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "onxx"}, r"--format is 'onxx'; did you mean 'onnx'\?"),
        ({"format": "timm", "size": 32}, "--size has no meaning for --format timm; leave it out"),
        ({"format": "safetensors", "part": ("encoder",)}, "--part has no meaning for --format safetensors"),
        ({"format": "hub", "student": True}, "--student has no meaning for --format hub"),
        ({"format": "torch", "license": "mit"}, "--license has no meaning for --format torch"),
        ({"format": "timm", "run": "absent"}, "There is no run at absent"),
        ({"format": "hub", "license": "bad: licence [x"}, "is no name of a licence as the hub calls it"),
        ({"format": "hub", "photos": 1000}, "--photos 1000 are too many for a model card"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(run, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        iwm.export(**{"run": run, "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_an_export_is_neither_mixed_with_another_nor_written_over_its_own_weights(run, tmp_path):
    out = tmp_path / "out"
    iwm.export(run, format="safetensors", out=out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="holds an export as safetensors; give a new --out"):
        iwm.export(run, format="timm", out=out)
    with pytest.raises(UserError, match="holds the very weights that are exported"):
        iwm.export(out, format="safetensors", small=True, out=out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_an_absent_extra_is_named_with_how_to_install_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        format, "find_spec", lambda name: None if name.startswith("onnx") else importlib.util.find_spec(name)
    )
    assert cli.main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "out")]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert (
        words
        == "--format onnx needs onnx, onnxscript and onnxruntime; install: pip install onnx onnxscript onnxruntime."
    )


def test_a_format_of_your_own_is_found_by_its_name(run, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "names", ExportFormat)

    @iwm.register_format
    class Names(iwm.ExportFormat):
        name = "names"
        takes = ("student",)

        def write(self, request: Request, folder: Path) -> dict[str, Any]:
            (folder / "names.txt").write_text("\n".join(request.encoder.state_dict()))
            return {"count": len(request.encoder.state_dict())}

    assert cli.main(["export", str(run), "--format", "names", "--out", str(tmp_path / "out"), "--student"]) == 0
    assert (tmp_path / "out" / "names.txt").read_text().startswith("pos_embed")
    assert json.loads((tmp_path / "out" / export.RESULT).read_text())["count"] > 10
