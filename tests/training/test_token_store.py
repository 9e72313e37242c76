import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from conftest import pictures_file, tiny
from tiny_encoders import SIZES

from iwm import config
from iwm.data.crops import random_crops
from iwm.data.loader import load_whole
from iwm.data.sources import open_images
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.training import step, token_store
from iwm.training.validation import with_encoder

KIND = "tiny_registers"


def settings(**encoder: object) -> config.Config:
    base = tiny()
    own = config.Encoder(name=f"timm:{KIND},weights=random", train="none", **{"views": 4, "crops": 2, **encoder})  # pyright: ignore[reportArgumentType]
    return with_encoder(replace(base, recipe="custom", data=config.Data(image_size=SIZES[KIND]), encoder=own))


@pytest.fixture
def source(tmp_path: Path):
    return open_images(str(pictures_file(tmp_path / "pictures.npz", count=70, size=32)), "train", size=32)


def test_tokens_are_the_encoders_of_the_views_whose_parameters_are_known(tmp_path, source):
    chosen = settings()
    model = step.build(chosen, torch.device("cpu")).eval()
    store = token_store.build(model, source, tmp_path / "tokens", CPU)
    assert len(store) == 70
    rows = np.array([3, 66, 69])
    whole, _ = load_whole(source, rows, 32)
    for crop, view in ((0, 0), (1, 1), (1, 3)):
        crops = random_crops(whole, 32, chosen.data.crop_area, chosen.data.flip, 0, crop, rows)
        views = model.space.apply(crops.float() / 255, store.plan.parameters(rows, crop, view))
        tokens = store.take(rows, np.full(3, crop), np.full(3, view)).float()
        with torch.no_grad():
            torch.testing.assert_close(tokens, model.encode(views).values, atol=2e-3, rtol=2e-3)
    assert not store.plan.parameters(rows, 0, 0).applied.any()
    flags = torch.tensor([not t.both for t in model.space.transformations])
    many = np.arange(70)
    for view in range(store.plan.targets):
        assert not store.plan.parameters(many, 0, view).applied[:, flags].any()
    assert store.plan.parameters(many, 0, 3).applied[:, flags].any()


def test_what_was_encoded_is_found_again_by_its_content(tmp_path, source, monkeypatch: pytest.MonkeyPatch):
    model = step.build(settings(), torch.device("cpu")).eval()
    first = token_store.build(model, source, tmp_path, CPU)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(files) == 2
    again = token_store.build(model, source, tmp_path, CPU)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == files
    every = np.arange(70), np.arange(70) % 2, np.arange(70) % 4
    assert torch.equal(first.take(*every), again.take(*every))
    with torch.no_grad():
        model.target_encoder.body.blocks[0].mlp.fc1.weight.mul_(1.1)
    token_store.build(model, source, tmp_path, CPU)
    assert len(list(tmp_path.glob("*.npy"))) == 4
    monkeypatch.setattr(token_store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match=r"lower encoder\.views"):
        token_store.build(model, source, tmp_path / "elsewhere", CPU)


def test_only_what_is_missing_needs_room(tmp_path, source, monkeypatch: pytest.MonkeyPatch):
    model = step.build(settings(), torch.device("cpu")).eval()
    token_store.build(model, source, tmp_path, CPU)
    first = max(tmp_path.glob("*.npy"), key=lambda path: path.stat().st_size)
    free = first.stat().st_size  # with the header of the file
    first.unlink()  # a gap: what lies behind it is there
    monkeypatch.setattr(token_store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free})())
    token_store.build(model, source, tmp_path, CPU)
    first.unlink()
    free -= 1000
    with pytest.raises(UserError, match=r"lower encoder\.views"):
        token_store.build(model, source, tmp_path, CPU)


def test_the_size_is_said_beforehand(tmp_path, source, capsys):
    chosen = settings()
    assert token_store.size_of(chosen, 70) == 70 * 2 * 4 * 16 * 32 * 2
    token_store.build(step.build(chosen, torch.device("cpu")).eval(), source, tmp_path, CPU)
    assert "70 images x 8 views go once through timm:tiny_registers up to block 3" in capsys.readouterr().out


def build_with_few_descriptors(folder: Path) -> None:
    """In a process of its own, which may open 20 files more than it has: 70 parts, and views of all of them at once."""
    token_store.PART = 1
    source = open_images(str(folder / "pictures.npz"), "train", size=32)
    model = step.build(settings(), torch.device("cpu")).eval()
    soft = len(os.listdir("/dev/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    store = token_store.build(model, source, folder / "tokens", CPU)
    tokens = store.take(np.arange(70), np.zeros(70, dtype=np.int64), np.zeros(70, dtype=np.int64))
    assert len(store.parts) == 70
    assert len(tokens.flatten(1).unique(dim=0)) == 70, "every image has tokens of its own"


def test_a_store_of_more_files_than_a_process_may_open_is_read(tmp_path, source):
    child = ranks.start(1, tmp_path / "output", build_with_few_descriptors, tmp_path)
    assert child.wait() == [0], child.texts


def test_tokens_that_went_away_are_named_with_what_to_do(tmp_path, source):
    store = token_store.build(step.build(settings(), torch.device("cpu")).eval(), source, tmp_path / "tokens", CPU)
    first, last = store.parts[0].path, store.parts[-1].path
    os.truncate(last, last.stat().st_size - 1)
    first.unlink()
    for row, path in ((3, first), (69, last)):
        with pytest.raises(UserError, match=f"{path.name} were deleted or cut .* the same command encodes it again"):
            store.take(np.array([row]), np.array([1]), np.array([3]))
