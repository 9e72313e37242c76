"""Checkpoints and exported weights: what comes back, what a crash or damage leaves, and that nothing is unpickled."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny

from iwm import run_folder
from iwm.model.weights import export
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError
from iwm.training import checkpoint
from iwm.training.optimisers import make_optimisers

Optimisers = list[torch.optim.Optimizer]


def made(kind: str = "adamw", seed: int = 0) -> tuple[ImageWorldModel, Optimisers]:
    """A tiny model and its optimisers, both as drawn."""
    torch.manual_seed(seed)
    model = ImageWorldModel(tiny(optim=replace(tiny().optim, kind=kind)))
    optimisers = make_optimisers(model, model.settings.optim, torch.float32)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 1e-2
    return model, optimisers


def step(model: ImageWorldModel, optimisers: Optimisers, seed: int) -> None:
    """One step down random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimiser in optimisers:
        optimiser.step()


def save(folder: Path, *steps: int, keep: int = 9) -> tuple[ImageWorldModel, Optimisers]:
    """A model that is saved after each of these steps, being moved in between."""
    model, optimisers = made()
    for number in steps:
        step(model, optimisers, number)
        checkpoint.save(folder, number, model, optimisers, keep, 64)
    return model, optimisers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what comes back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_model_and_optimisers_come_back_and_go_on_as_if_never_left(tmp_path, kind):
    model, optimisers = made(kind)
    step(model, optimisers, 1)
    path = checkpoint.save(tmp_path, 7, model, optimisers, 2, 64)
    assert path == tmp_path / "step-00000007"
    saved = checkpoint.read(path)
    assert (saved.path, saved.step, saved.images, saved.settings) == (path, 7, 64, model.settings)

    other, others = made(kind, seed=1)
    checkpoint.restore(saved, other, others)
    # A step from an empty state would end elsewhere, so this asks for every momentum and count too.
    step(model, optimisers, 2)
    step(other, others, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_restoring_refuses_what_nothing_takes(tmp_path):
    model, optimisers = save(tmp_path, 1)
    saved = checkpoint.read(tmp_path / "step-00000001")
    (standing,) = (name for name, p in model.named_parameters() if name.endswith("pos_embed") and "target" not in name)
    for name in ("nowhere.weight", standing):
        planted = replace(saved, tensors={**saved.tensors, f"optimiser.exp_avg.{name}": torch.zeros(1)})
        with pytest.raises(UserError, match=rf"step-00000001 holds optimiser\.exp_avg\.{name}, which nothing here"):
            checkpoint.restore(planted, model, optimisers)


def test_a_folder_without_checkpoints_is_a_run_that_has_none_yet(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    save(tmp_path, 3, 6, 9, 12, keep=keep)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000009", "step-00000012"][-keep:]


def test_what_lies_there_of_later_steps_and_of_crashes_goes(tmp_path):
    save(tmp_path, 3, 6, 9)
    (tmp_path / ".part-00000012").mkdir()
    (tmp_path / ".part-00000012" / "state.safetensors").write_bytes(b"half")
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


# ---- crashes and damage --------------------------------------------------------------------------------------------


def torn_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def torn_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(path: Path, text: str) -> None:
        path.write_bytes(text[:20].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)


def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.files, "sync", sync)


def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, to: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("crash", [torn_tensors, torn_text, unsynced, unnamed])
def test_a_crash_at_any_point_of_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch, crash):
    model, optimisers = save(tmp_path, 3, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(model, optimisers, 9)
    with monkeypatch.context() as patch:
        crash(patch)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, 9, model, optimisers, 1, 64)
    saved, complaints = checkpoint.newest(tmp_path)
    assert saved
    assert (saved.step, complaints) == (6, [])
    assert all(torch.equal(saved.tensors[f"model.{name}"], value) for name, value in before.items())
    checkpoint.save(tmp_path, 9, model, optimisers, 1, 64)  # as soon as there is room again
    assert names(tmp_path) == ["step-00000009"]
    assert checkpoint.read(tmp_path / "step-00000009").step == 9


def test_nothing_bears_its_name_before_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    """After a power cut a file that was renamed but never synced may be empty."""
    synced: list[str] = []
    monkeypatch.setattr(checkpoint.files, "sync", lambda path: synced.append(path.name))
    real = Path.rename

    def rename(path: Path, to: Path) -> Path:
        assert synced == ["state.safetensors", "state.json", path.name]
        return real(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 3)
    assert synced[3:] == [tmp_path.name]


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def cut(folder: Path) -> None:
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder: Path) -> None:
    file = folder / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # a single bit of the last weight: still a valid file
    file.write_bytes(data)


def garble(folder: Path) -> None:
    file = folder / "state.safetensors"
    file.write_bytes(b"no tensors")
    edit(folder / "state.json", sha256=hashlib.sha256(b"no tensors").hexdigest())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut short": cut,
    "one bit": flip,
    "no tensors, with a checksum that matches": garble,
    "no file of tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "state.json torn": lambda folder: (folder / "state.json").write_text('{"format": 1, "ste'),
    "no state.json": lambda folder: (folder / "state.json").unlink(),
    "state.json is no object": lambda folder: (folder / "state.json").write_text("[1, 2]"),
    "state.json is no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "no step": lambda folder: edit(folder / "state.json", step=None),
    "no settings": lambda folder: edit(folder / "state.json", settings=None),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over_in_a_sentence(tmp_path, damage):
    save(tmp_path, 3, 6)
    DAMAGE[damage](tmp_path / "step-00000006")
    saved, complaints = checkpoint.newest(tmp_path)
    assert saved
    assert saved.step == 3
    (sentence,) = complaints
    assert sentence.startswith(f"Checkpoint {tmp_path / 'step-00000006'} is damaged (")
    assert sentence.endswith("; delete that folder.")
    DAMAGE[damage](tmp_path / "step-00000003")
    with pytest.raises(
        UserError, match=r"No checkpoint in .* can be read; delete the folder or .*step-00000006 is dam"
    ):
        checkpoint.newest(tmp_path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "gone off")


@pytest.mark.parametrize("pickled", ["pickle", "torch.save"])
def test_nothing_is_ever_unpickled(tmp_path, pickled):
    gone_off = tmp_path / "gone off"
    save(tmp_path / "checkpoints", 3)
    export(made()[0], tmp_path / "model")
    folder = tmp_path / "checkpoints" / "step-00000003"
    assert names(folder) == ["state.json", "state.safetensors"]
    planted = tmp_path / "planted"
    if pickled == "pickle":
        planted.write_bytes(pickle.dumps({"model.x": Bomb(gone_off)}))
    else:
        torch.save({"model.x": Bomb(gone_off)}, planted)
    for file in (folder / "state.safetensors", tmp_path / "model" / "model.safetensors"):
        file.write_bytes(planted.read_bytes())
    edit(folder / "state.json", sha256=hashlib.sha256(planted.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read(folder)
    with pytest.raises(UserError, match="cannot be read"):
        run_folder.load_model(str(tmp_path))
    assert not gone_off.exists()


# ---- weights for use -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(tmp_path):
    """It is not damaged: to go on from the older one would delete it."""
    save(tmp_path, 3, 6)
    path = tmp_path / "step-00000006" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    sentence = "step-00000006 is of format 99, this iwm reads formats up to 1; update iwm"
    for read in (lambda: checkpoint.read(path.parent), lambda: checkpoint.newest(tmp_path)):
        with pytest.raises(UserError, match=sentence):
            read()
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize("crash", ["unnamed", "old one half gone", "second name"])
def test_a_crash_while_a_step_is_saved_anew_leaves_a_checkpoint_of_it(tmp_path, monkeypatch, crash):
    model, optimisers = save(tmp_path, 6)
    renames = 0
    rename, rmtree = Path.rename, shutil.rmtree

    def renaming(path: Path, to: Path) -> Path:
        nonlocal renames
        renames += 1
        if (crash, renames) in (("unnamed", 1), ("second name", 2)):
            raise OSError("No space left on device")
        return rename(path, to)

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if crash == "old one half gone" and path.name == "step-00000006":
            (path / "state.json").unlink()
            raise OSError("No space left on device")
        rmtree(path, ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        patch.setattr(checkpoint.shutil, "rmtree", removing)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, 6, model, optimisers, 1, 64)
    saved, _ = checkpoint.newest(tmp_path)
    assert saved
    assert saved.step == 6
    checkpoint.save(tmp_path, 6, model, optimisers, 1, 64)
    assert names(tmp_path) == ["step-00000006"]
