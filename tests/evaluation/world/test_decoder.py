"""PSNR of imagined pictures against a planted world, and a decoder that is fitted, saved and found again."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from oracle import REVERSIBLE, SPACE, SeeingOracle, photo
from torch import Tensor

import iwm
from evaluation.planted import exported
from iwm import cli, config, verbs
from iwm.evaluation.world import decoder
from iwm.run_folder import load_model
from iwm.runtime.errors import UserError

BANK = 6


def test_psnr_of_a_planted_world_against_numpy() -> None:
    image = photo()
    numbers = decoder.measure(SeeingOracle(), image, BANK, 3)
    parameters = SPACE.sample_bank(3, 0, BANK)
    clean = image.float() / 255
    entries = SPACE.apply(clean.expand(BANK, -1, -1, -1), parameters).double().numpy()
    for name, picture in (("unchanged", clean.double().numpy()[0]), ("bank_mean", entries.mean(0))):
        error = ((picture - entries[0]) ** 2).mean()
        assert numbers[f"psnr_{name}"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    assert numbers["psnr_null"] == pytest.approx(numbers["psnr_unchanged"], abs=1e-3)
    assert numbers["psnr_truth"] == pytest.approx(10 * math.log10(12 * 255**2)), "equal pictures: 8 bits' rounding"
    assert numbers["psnr_prediction"] == pytest.approx(numbers["psnr_truth"], abs=0.1)
    assert math.isnan(numbers["psnr_truth_standard_error"])


def test_a_wrong_world_is_below_the_source_and_errors_are_over_images() -> None:
    numbers = decoder.measure(SeeingOracle(wrong=True), photo(5), BANK, 0)
    assert numbers["psnr_prediction"] < numbers["psnr_unchanged"] < numbers["psnr_truth"]
    each = [decoder.measure(SeeingOracle(wrong=True), photo(5)[:1], BANK, 0)["psnr_prediction"]]
    assert each[0] != numbers["psnr_prediction"]
    assert numbers["psnr_prediction_standard_error"] > 0


def test_a_tenth_of_the_images_is_held_and_all_are_changed() -> None:
    model = load_model_of(tiny())
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    parts = list(decoder.batches(model, images, 2, 0))
    assert [(len(part.tokens), part.held) for part in parts] == [(18, False)] * 2 + [(2, True)] * 2
    assert not torch.equal(parts[0].patches, parts[1].patches)


def load_model_of(settings: config.Config) -> iwm.ImageWorldModel:
    return iwm.ImageWorldModel(settings).eval().requires_grad_(False)


# ---- the verb ------------------------------------------------------------------------------------------------------


def test_a_run_gets_its_decoder_and_shows_what_it_imagines(
    trained: Path, pictures: str, capsys: pytest.CaptureFixture[str], images: Tensor, tmp_path: Path
) -> None:
    world = ["world", str(trained), "--data", pictures, "--images=2", "--bank=4"]
    assert cli.main(world) == 0
    assert f"iwm decoder {trained}" in capsys.readouterr().out.replace("\n", "")
    options = {"images": 40, "test_images": 8, "bank": 4, "head": "linear", "speed.precision": "fp32"}
    numbers = iwm.decoder(trained, **options)
    written = json.loads(numbers.path.read_text())
    assert numbers.path.with_suffix(".png").stat().st_size > 5_000
    assert (written["data"], written["head"]) == ("pictures", "linear")
    assert written["psnr_truth"] > max(written["psnr_prediction"], written["psnr_bank_mean"], written["psnr_null"])
    assert written["psnr_truth_standard_error"] > 0
    model = iwm.load(trained)
    decoded = model.decode(model.target(images[..., :12]))
    assert decoded.shape == (8, 3, 16, 12)
    capsys.readouterr()
    assert cli.main(world) == 0
    assert "iwm decoder" not in capsys.readouterr().out


def test_a_decoder_of_other_or_damaged_weights_is_not_used(
    tmp_path: Path, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported(tmp_path / "run")
    options = {"images": 20, "test_images": 2, "bank": 2, "head": "linear", "data": pictures}
    place = Path(iwm.decoder(run, **options)["decoder"])
    assert load_model(run).decodes
    exported(tmp_path / "run", seed=1)
    assert not load_model(run).decodes
    assert "other weights" in capsys.readouterr().err
    place.write_bytes(b"damaged")
    assert not load_model(run).decodes
    assert "cannot be read" in capsys.readouterr().err
    iwm.decoder(run, **options)
    assert load_model(run).decodes


def test_pixels_need_no_fit(tmp_path: Path, pictures: str) -> None:
    run = exported(tmp_path / "run", objective=config.Objective(kind="pixels", target_norm="batch"))
    numbers = iwm.decoder(run, data=pictures, images=20, test_images=2, bank=2, **{"speed.precision": "fp32"})
    assert numbers["head"] == "exact"
    assert numbers["psnr_truth"] == pytest.approx(58.9, abs=0.1)
    assert "decoder" not in numbers


def test_what_cannot_be_decoded_is_refused(tmp_path: Path, pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joint = exported(tmp_path / "joint", objective=config.Objective(kind="joint"), masks=config.Masks(sampler="none"))
    with pytest.raises(UserError, match="without a predictor"):
        verbs.call("decoder", joint, data=pictures)
    run = exported(tmp_path / "run")
    with pytest.raises(UserError, match="give --data"):
        verbs.call("decoder", run)

    real = tempfile.TemporaryFile

    def full(dir: Path) -> Any:  # only where the weights lie, results have room
        if dir.name == "model":
            raise OSError(28, "No space left on device")
        return real(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=r"The decoder cannot be written to .*No space left on device.; copy the run"):
        verbs.call("decoder", run, data=pictures)


def test_the_space_of_the_user_is_measured_in_its_own_range() -> None:
    numbers = decoder.measure(SeeingOracle(space=REVERSIBLE, size=32), photo(2), 3, 0)
    assert np.isfinite(list(numbers.values())).all()
