"""The folder that is pushed: weights, a card of what was measured beside its controls, a strip with its credits."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

import iwm
from exporting.models import classifier, options, world
from iwm import cli, config
from iwm.exporting import hub_folder
from iwm.exporting.format import Request
from iwm.run_folder import identity
from iwm.runtime.errors import UserError


def write_result(run: Path, name: str, **content: object) -> None:
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / f"{name}.json").write_text(json.dumps({"fingerprint": "x", "settings": {}, **content}))


def test_it_holds_all_that_a_stranger_needs(tmp_path):
    run = world(tmp_path / "run", decoder=True)
    world_numbers = {
        "mrr": 0.4,
        "mrr_standard_error": 0.01,
        "mrr_chance": 0.024,
        "mrr_shuffled": 0.03,
        "mrr_null": 0.02,
    }
    write_result(run, "world-photos", data="photos", bank=256, **world_numbers)
    write_result(
        run, "probe-linear-birds", data="birds", kind="linear", top1=0.7, n_val=500, random_encoder_top1=0.3, chance=0.1
    )
    out = tmp_path / "out"
    words = ["export", str(run), "--format", "hub", "--out", str(out), "--license", "cc-by-4.0", "--photos", "2"]
    assert cli.main(words) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("README.md", "config.json", "model.safetensors", "decoder.safetensors"),
        *("imagined.png", "photos-attribution.csv", "export.json", ".iwm-output"),
    }
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["library_name"], front["license"]) == ("iwm", "cc-by-4.0")
    for line in (
        'world = iwm.load("hf-hub:USER/NAME")',
        "![Changes of photos, as the model imagines them](imagined.png)",
        "| `hue` | change of the raw parameter / 0.2 | -0.1 to 0.1 |",
        "| `grayscale` | 1: the image carries it, undo it | a flag |",
        "| World model on photos | 0.400 | chance 0.024, shuffled actions 0.030, null action 0.020 |",
        "| Linear probe on birds | 0.700 | a random encoder 0.300, chance 0.100 |",
        "The weights: cc-by-4.0.",
        "credited together in `photos-attribution.csv`",
    ):
        assert line in text, line
    with Image.open(out / "imagined.png") as strip:
        assert strip.size[0] > strip.size[1] / 2 > 100
    assert iwm.load(out).decodes
    written = "".join(path.read_text() for path in out.iterdir() if path.suffix in (".json", ".md"))
    assert str(tmp_path) not in written


def test_the_card_has_no_results_of_earlier_weights(tmp_path, capsys):
    run = world(tmp_path / "run")
    for name, mark in (("birds", "ab"), ("cats", identity(str(run)))):
        write_result(run, f"probe-linear-{name}", data=name, kind="linear", top1=0.7, n_val=500, run_weights=mark)
    assert [one.title for one in hub_folder.measured(str(run))] == ["Linear probe on cats"]
    assert "The card leaves out probe-linear-birds: measured on other weights" in " ".join(
        capsys.readouterr().err.split()
    )


def test_without_decoder_photos_results_or_licence_it_says_so(tmp_path, capsys):
    run = world(tmp_path / "run")
    iwm.export(run, format="hub", out=tmp_path / "out", photos=0)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "imagined.png" not in text
    assert "world.decode" not in text
    assert "Nothing has been measured on these weights yet" in text
    assert "has named no licence" in text
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert not (tmp_path / "out" / "photos-attribution.csv").exists()
    iwm.export(run, format="hub", out=tmp_path / "strip", photos=1)
    assert "no pixel decoder was fitted (iwm decoder RUN)" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "strip" / "imagined.png").is_file()


def test_an_encoder_without_predictor_has_a_card_too(tmp_path):
    run = world(
        tmp_path / "run",
        objective=config.Objective(kind="joint"),
        views=config.Views(geometry="independent"),
    )
    iwm.export(run, format="hub", out=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "as a joint embedding, without a predictor" in text
    assert "world.predict" not in text
    assert "action space" not in text


def test_a_card_of_its_own_comes_with_the_weights(tmp_path):
    hub_folder.write_folder(Request(options("demo", format="hub", photos=0)), tmp_path, hub_folder.Card())
    text = (tmp_path / "README.md").read_text()
    assert "### The model in the package: `demo`" in text
    assert "MRR, 64 photos, bank of 256" in text
    assert "The weights: apache-2.0." in text


def test_finetuned_weights_are_refused(tmp_path):
    folder = classifier(world(tmp_path / "run"), tmp_path / "classifier")
    with pytest.raises(UserError, match="is a finetuned classifier, no world model; give the run it came from"):
        iwm.export(folder, format="hub", out=tmp_path / "out")
