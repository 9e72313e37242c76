"""The model in the package: there, small, found by its name from any folder, and built anew by one command."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import pictures_file
from PIL import Image

import iwm
from iwm import cli
from iwm.model import weights
from iwm.run_folder import SHIPPED_FOLDER, RunFolder, find_weights
from iwm.runtime.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """A picture file that is not square."""
    pixels = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_it_is_small_and_all_of_it_is_packaged() -> None:
    files = {path.name: path.stat().st_size for path in SHIPPED_FOLDER.iterdir()}
    assert set(files) == {weights.TENSORS, weights.CONFIG, weights.DECODER, "card.md"}
    assert sum(files.values()) <= 5_000_000
    assert "model/assets/demo/*" in (ROOT / "pyproject.toml").read_text()


def test_it_is_loaded_by_its_name_and_imagines(images: torch.Tensor) -> None:
    world = iwm.load("demo")
    with torch.no_grad():
        picture = world.decode(world.predict(world.encode(images), world.action(brightness=0.3)))
    assert picture.shape == (8, 3, *(side * world.encoder.patch_size for side in world.encode(images).grid))
    assert world.target_norm.mean.dtype == torch.float32
    with pytest.raises(UserError, match="no student"):
        world.encode(images, student=True)


def test_the_card_says_how_it_was_made_and_what_it_is_worth() -> None:
    card = (SHIPPED_FOLDER / "card.md").read_text()
    for words in (
        "iwm pretrain --config",
        "build_demo_model.py",
        "Apache-2.0",
        "CC BY 2.0",
        "seed",
        "chance",
        "random",
    ):
        assert words in card, words


def test_its_name_is_no_folder_here(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained.rename(tmp_path / "demo")
    assert find_weights("demo") == SHIPPED_FOLDER
    iwm.load("demo")
    assert "the run of that name here is ./demo" in capsys.readouterr().err
    for own in ("./demo", Path("demo"), f"{tmp_path}/demo"):
        assert iwm.load(own).settings.data.image_size == 16
    assert RunFolder.of("demo").path == Path("iwm-eval/demo")
    assert RunFolder.of(Path("demo")).path == Path("demo")


def test_verbs_take_it_and_results_lie_here(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["imagine", "demo", photo, "--action", "hue=0.1", "--bank", "4"]) == 0
    result = json.loads(Path("iwm-eval/demo/eval/imagine-hue-0.1-photo.json").read_text())
    assert result["settings"]["run"] == "demo"
    assert result["psnr_prediction"] > 0
    assert cli.main(["report", "demo"]) == 0
    text = Path("iwm-eval/demo/report.html").read_text()
    assert "iwm pretrain" not in text
    assert "iwm world demo --data SOURCE" in text
    assert cli.main(["probe", "demo", "--data", "sample", "--kind", "instance", "--student"]) == 2
    assert "no student" in capsys.readouterr().err


def test_it_is_built_anew_from_a_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(pictures_file(tmp_path / "photos.npz", count=80))
    folder, results = tmp_path / "assets", tmp_path / "results"
    words = [str(trained), "--data", data, "--trained-on", "a laptop", "--out", str(folder), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["build_demo_model.py", *words])
    runpy.run_path(str(ROOT / "tools" / "build_demo_model.py"), run_name="__main__")
    assert "4 files" in capsys.readouterr().out
    model = iwm.load(folder)
    assert model.decodes
    assert not model.has_student
    for name, value in iwm.load(trained).target_encoder.state_dict().items():
        assert torch.equal(model.target_encoder.state_dict()[name], value.bfloat16().float()), name
    card = (folder / "card.md").read_text()
    world = json.loads((results / "eval" / "world-photos.json").read_text())
    assert "a laptop" in card
    assert f"{world['mrr']:.3f}" in card
    assert (results / "config.yaml").is_file()
    assert world["settings"]["run"] == "demo"
