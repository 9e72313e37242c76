"""Maps show what an oracle knows, and averages over actions are averages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures_file
from oracle import REVERSIBLE, Oracle, SeeingOracle, muted
from PIL import Image

from iwm import config
from iwm.evaluation.world import look
from iwm.runtime.errors import UserError
from iwm.verbs.look import Look


def small(count: int) -> torch.Tensor:
    return muted(count)[..., ::4, ::4].contiguous()


def test_principal_directions_against_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)
    mean, directions = look.principal(values)
    theirs = decomposition.PCA(3).fit(values.numpy())
    np.testing.assert_allclose(mean, theirs.mean_, atol=1e-5)
    np.testing.assert_allclose(np.abs((directions.T.numpy() * theirs.components_).sum(1)), 1, atol=1e-4)


def test_an_oracle_explains_every_change_and_what_is_undone() -> None:
    rows = look.rows_of(Oracle(space=REVERSIBLE, size=8), small(2), 0)
    assert [row.words for row in rows[2:]] == ["undo negative", "undo mirror"]
    for row in rows:
        assert row.explained == pytest.approx(1, abs=1e-5)
        assert row.moved.mean() > 0
    wrong = look.rows_of(Oracle(space=REVERSIBLE, size=8, wrong=True), small(2), 0)
    assert wrong[0].explained == pytest.approx(-3, rel=1e-3), "twice as far, squared"


def test_colours_tell_images_apart_and_no_positions() -> None:
    """Positions as strong as in a trained encoder; the images differ in one weak direction, patch by patch the same."""
    torch.manual_seed(0)
    positions = 10 * torch.randn(16, 6)
    row = look.rows_of(Oracle(space=REVERSIBLE, size=8), small(1), 0)[0]
    light, dark = positions + torch.eye(6)[0], positions - torch.eye(6)[0]
    shown = replace(row, before=light, prediction=light, truth=dark, grid=(4, 4))
    reverse = replace(shown, before=dark, prediction=dark, truth=light)
    panels = [axes.images[0].get_array() for axes in look.draw([shown, reverse], positions).axes]
    source, prediction, truth = (np.asarray(panel).reshape(16, 3)[:, 0].astype(int) for panel in panels[2:5])
    assert np.ptp(source) == np.ptp(truth) == 0, "one colour, whatever the position"
    assert source[0] == prediction[0]
    assert abs(source[0] - truth[0]) == 255


def test_the_usual_token_is_the_mean_over_images() -> None:
    model, images = Oracle(space=REVERSIBLE, size=8), small(70)
    wanted = model.target(images).values.double().mean(0)
    torch.testing.assert_close(look.usual_tokens(model, images).double(), wanted, atol=1e-6, rtol=0)


def test_averages_over_actions_against_brute_force() -> None:
    model, images = Oracle(space=REVERSIBLE, size=8), small(3)
    calls = []
    found = look.views_of(model, images, (1, 4), 5, lambda: calls.append(1))
    assert list(found) == ["encoder", "null action", "mean of 1", "mean of 4"]
    assert len(calls) == 4
    torch.testing.assert_close(found["null action"], found["encoder"])
    parameters = REVERSIBLE.sample_bank(5, 2, 4)
    changed = REVERSIBLE.apply((images[2:].float() / 255).expand(4, -1, -1, -1), parameters)
    torch.testing.assert_close(found["mean of 4"][2], changed.mean((0, 2, 3)))
    torch.testing.assert_close(found["mean of 1"][2], changed[0].mean((1, 2)))


def test_the_look_is_written_with_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "open_world", lambda run, session: Oracle(space=REVERSIBLE, size=8))
    source = str(pictures_file(tmp_path / "pictures.npz", size=8, labelled=True))
    options: dict[str, Any] = {"images": 400, "views": (1, 2), "shown": 1, "out": str(tmp_path)}
    found = look.look(Look(run="run", data=source, speed=config.Speed(precision="fp32"), **options))
    written = json.loads(Path(found["path"]).read_text())
    assert written["images"] == 64, "as many as there are"
    assert [row["what"] for row in written["averaged"]] == ["encoder", "null action", "mean of 1", "mean of 2"]
    assert written["composition"]["error"]["sum"] == pytest.approx(0, abs=1e-3)
    assert Path(found["path"]).with_suffix(".png").stat().st_size > 5_000
    assert (tmp_path / "eval" / "look-pictures-averaged.png").stat().st_size > 5_000


def test_labels_of_validation_alone_are_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(look, "open_world", lambda run, session: Oracle(space=REVERSIBLE, size=8))
    source = tmp_path / "mixed"
    draw = np.random.default_rng(0)
    held = [f"val/{kind}/{number}" for kind in "ab" for number in "12"]
    for name in [*(f"train/{number}" for number in range(24)), *held]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(source / f"{name}.png")
    speed = config.Speed(precision="fp32")
    found = look.look(Look(run="run", data=str(source), images=20, out=str(tmp_path), speed=speed))
    assert "averaged" not in found
    assert "averaging over actions is not probed" in " ".join(capsys.readouterr().out.split())


def test_labels_that_will_not_do_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "open_world", lambda run, session: Oracle(space=REVERSIBLE, size=8))
    monkeypatch.setattr(look, "load_draw", lambda *words: pytest.fail("images were read"))
    source = tmp_path / "same.npz"
    np.savez(source, images=np.zeros((20, 8, 8, 3), np.uint8), labels=np.zeros(20, np.int64))
    with pytest.raises(UserError, match="one class only"):
        look.look(Look(run="run", data=str(source), out=str(tmp_path), speed=config.Speed(precision="fp32")))


def test_with_a_decoder_the_imagined_picture_stands_beside_the_target() -> None:
    model, images = SeeingOracle(space=REVERSIBLE, size=8), small(2)
    rows, plain = look.rows_of(model, images, 0), look.rows_of(Oracle(space=REVERSIBLE, size=8), images, 0)
    torch.testing.assert_close(rows[0].imagined, rows[0].target, atol=1e-5, rtol=0)
    assert rows[0].decibels["psnr_unchanged"] < rows[0].decibels["psnr_prediction"]
    assert plain[0].decibels == {}
    usual = look.usual_tokens(model, images)
    assert len(look.draw(rows, usual).axes) == len(look.draw(plain, usual).axes) + 2 * len(rows)
