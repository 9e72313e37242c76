"""What a dry run says of a pretraining is what the pretraining does, and it leaves nothing behind."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_encoders  # noqa: F401 - registers timm models
from conftest import pictures_file, tiny, trained_on, with_run

from iwm import config, recipe_book
from iwm.runtime.errors import UserError
from iwm.training import estimate, loop


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    return trained_on(tiny(), source=str(pictures_file(tmp_path / "p.npz")), out=str(tmp_path / "run"))


def test_steps_size_and_files_are_those_of_the_run(settings):
    before = set(Path(settings.run.out).parent.iterdir())
    plan = estimate.pretrain(settings)
    assert set(Path(settings.run.out).parent.iterdir()) == before
    run = loop.pretrain(settings)
    assert plan["steps"] == plan["steps_left"] == 8
    assert all(Path(name).exists() for name in plan["writes"])
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e9
    assert plan["disk_gb"] == pytest.approx(written, rel=1, abs=1e-3)
    assert 0 < plan["seconds"] < 60
    assert estimate.pretrain(settings)["steps_left"] == 0
    more = replace(settings, optim=replace(settings.optim, epochs=3))
    assert (estimate.pretrain(more)["steps"], estimate.pretrain(more)["steps_left"]) == (12, 4)


def test_it_says_what_does_nothing_as_training_does(settings, capsys):
    settings = replace(
        settings, masks=replace(settings.masks, ratio=0.5), optim=replace(settings.optim, warmup_epochs=2)
    )
    estimate.pretrain(settings)
    said = " ".join(capsys.readouterr().err.split())
    assert "masks.sampler is exact, so nothing is changed by masks.ratio." in said
    assert "The learning rate still rises when training ends" in said


@pytest.mark.parametrize("family", ["mae", "moco", "ijepa-published"])
def test_every_objective_has_a_step_to_measure(settings, family):
    size = recipe_book.FAMILIES[family](settings)
    assert estimate.pretrain(replace(size, optim=settings.optim))["seconds_per_step"] > 0


def test_it_refuses_what_training_refuses(settings, tmp_path):
    with pytest.raises(UserError, match="Where should the run go"):
        estimate.pretrain(with_run(settings, out=""))
    with pytest.raises(UserError, match=r"larger than .* 64 images"):
        estimate.pretrain(replace(settings, optim=replace(settings.optim, batch_size=100)))
    with pytest.raises(UserError, match="nowhere"):
        estimate.pretrain(replace(settings, init="nowhere"))
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        estimate.pretrain(settings)


def test_it_refuses_a_batch_that_several_ranks_cannot_share(settings, monkeypatch):
    for name, value in {
        "WORLD_SIZE": 3,
        "RANK": 0,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"a multiple of optim\.accumulate \(1\) times the 3 ranks"):
        estimate.pretrain(settings)


def test_it_refuses_a_folder_with_another_run_as_training_does(trained, tmp_path, monkeypatch):
    chosen = trained_on(tiny(), source=str(tmp_path / "pictures.npz"), out=str(trained))
    chosen = replace(chosen, optim=replace(chosen.optim, epochs=3))
    wide = replace(chosen, encoder=replace(chosen.encoder, width=64))
    cases = [(wide, r"holds a run with encoder\.width = 32, now it is 64")]
    cases += [(with_run(chosen, resume=False), "already holds a run; give another --out")]
    monkeypatch.chdir(tmp_path)
    near = trained_on(chosen, source="pictures.npz", out="run")  # the same source, from another folder
    assert estimate.pretrain(near)["steps_left"] == 4
    for refused, said in cases:
        for begin in (estimate.pretrain, loop.pretrain):
            with pytest.raises(UserError, match=said):
                begin(refused)
    pictures_file(tmp_path / "pictures.npz", count=128)
    with pytest.raises(UserError, match=r"was trained on 64 images, 'pictures' now holds 128"):
        estimate.pretrain(chosen)
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(UserError, match="holds a run without its checkpoints"):
        estimate.pretrain(chosen)


def test_tokens_that_are_kept_are_counted(settings, tmp_path):
    """Where an encoder of others stands still they are most of what is written."""
    pictures_file(tmp_path / "p.npz", size=32)
    kept = replace(
        settings,
        data=replace(settings.data, image_size=32),
        masks=config.Masks(sampler="none", predict="all"),
        encoder=config.Encoder(name="timm:tiny_registers,weights=random", train="none"),
        optim=replace(settings.optim, epochs=1),
    )
    plan = estimate.pretrain(kept)
    run = loop.pretrain(kept)
    tokens = run.parent / "tokens"
    size = sum(path.stat().st_size for path in tokens.iterdir()) / 1e9
    assert plan["writes"][-1] == str(tokens)
    assert plan["tokens_gb"] == pytest.approx(size, rel=0.1, abs=5e-4)
    assert plan["disk_gb"] > plan["tokens_gb"] > 0
