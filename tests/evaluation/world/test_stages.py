"""What is imagined while a model is trained: ranks in the metrics, three pictures side by side, also after a break."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pictures_file, tiny, trained_on

from iwm.evaluation.world import stages
from iwm.evaluation.world.stages import Stage, Stages
from iwm.run_folder import RunFolder
from iwm.training import loop
from iwm.training.callbacks import Callback, State


class Break(Callback):
    """Ctrl-C of a kind, once."""

    def on_step(self, state: State) -> None:
        if state.step == 5:
            raise KeyboardInterrupt


@pytest.fixture
def photos(images: torch.Tensor) -> torch.Tensor:
    return images[:2]


def train(tmp_path: Path, photos: torch.Tensor, *others: Callback, epochs: int = 2) -> RunFolder:
    source = pictures_file(tmp_path / "pictures.npz")
    settings = tiny(optim=replace(tiny().optim, epochs=epochs))
    lessons = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    callbacks = [Stages(photos, lessons, 0), *others]
    return RunFolder(
        loop.pretrain(trained_on(settings, source=str(source), out=str(tmp_path / "run")), None, callbacks)
    )


def test_ranks_stand_in_the_metrics_beside_their_controls(tmp_path: Path, photos: torch.Tensor, capsys) -> None:
    run = train(tmp_path, photos)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in lines:
        assert 1 <= line["held_out_rank"] <= stages.BANK
        assert 1 <= line["held_out_rank_untold"] <= stages.BANK
        assert line["held_out_rank_chance"] == (stages.BANK + 1) / 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "Before the first step the truth comes at rank" in printed
    assert "After 2 of 8 steps the truth comes at rank" in printed
    assert " left." in printed
    assert "a guess 32.5" in printed
    assert run.stages.read_bytes().startswith(b"\x89PNG")
    steps = [stage.step for stage in stages.read(run.stages.with_suffix(".safetensors"), 8)]
    assert steps == [0, 4, 8]
    assert loop.load_model(run.path).decoder is None


def test_training_is_not_changed_by_being_watched(tmp_path: Path, photos: torch.Tensor) -> None:
    """Nothing that is drawn, counted or normalised for a picture touches the run."""
    (tmp_path / "a").mkdir()
    watched = train(tmp_path, photos)
    source = str(tmp_path / "pictures.npz")
    alone = loop.pretrain(trained_on(tiny(), source=source, out=str(tmp_path / "a" / "run")))
    ours, theirs = (loop.load_model(run).state_dict() for run in (watched.path, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_goes_on_keeps_its_first_pictures(tmp_path: Path, photos: torch.Tensor) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, photos, Break())
    file = tmp_path / "run" / "stages.safetensors"
    first = stages.read(file, 3)
    assert [stage.step for stage in first] == [0]
    train(tmp_path, photos)
    finished = stages.read(file, 8)
    assert [stage.step for stage in finished] == [0, 4, 8]
    assert torch.equal(finished[0].pictures, first[0].pictures)


def test_damaged_pictures_are_named_and_left_out(tmp_path: Path, capsys) -> None:
    assert stages.read(tmp_path / "absent", 8) == []
    (tmp_path / "stages.safetensors").write_bytes(b"no tensors")
    assert stages.read(tmp_path / "stages.safetensors", 8) == []
    assert "the earlier pictures are left out" in " ".join(capsys.readouterr().err.split())


def test_stages_are_read_as_they_were_written(tmp_path: Path) -> None:
    stage = Stage(3, torch.rand(2, 3, 8, 8), torch.tensor([1.0, 2.5]))
    stages.write(tmp_path / "s.safetensors", [stage])
    (again,) = stages.read(tmp_path / "s.safetensors", 3)
    assert again.step == 3
    assert torch.equal(again.pictures, stage.pictures)
    assert torch.equal(again.ranks, stage.ranks)
    assert stages.read(tmp_path / "s.safetensors", 2) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.3, "12 s"), (95, "2 minutes"), (151, "3 minutes"), (140, "2.5 minutes")]
)
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert stages.in_minutes(seconds) == words
