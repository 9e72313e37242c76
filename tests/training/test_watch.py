"""What a run says of steps that are not finite."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import pictures_file, tiny, with_run

from iwm import config, recipe_book
from iwm.data.sources import open_images
from iwm.run_folder import RunFolder
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.training import loop, watch
from iwm.training.step import Training


def settings(tmp_path: Path, name: str = "run", **groups) -> config.Config:
    source = tmp_path / "pictures.npz"
    if not source.exists():
        pictures_file(source)
    base = tiny(**groups)
    return replace(base, data=replace(base.data, source=str(source)), run=replace(base.run, out=str(tmp_path / name)))


def test_a_diverged_run_stops_with_a_sentence(tmp_path):
    chosen = settings(tmp_path)
    wild = replace(chosen, optim=replace(chosen.optim, lr=1e30, lr_start=1e30, clip=0.0, warmup_epochs=0))
    with pytest.raises(UserError, match="diverged"):
        loop.pretrain(wild)
    assert json.loads(RunFolder(tmp_path / "run").metrics.read_text().splitlines()[-1])["skipped"] > 0


def test_one_step_that_is_not_finite_stops_no_run(tmp_path, monkeypatch):
    real = Training.step

    def stepping(self, batch):
        loss, finite = real(self, batch)
        return loss, finite & (batch.step not in (0, 5))

    monkeypatch.setattr(Training, "step", stepping)
    out = loop.pretrain(with_run(settings(tmp_path), log_every=1))
    assert [line["skipped"] for line in RunFolder(out).metric_lines()] == [1, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("size", "count"), [(16, 256), (20, 163), (32, 64)])
def test_health_needs_no_more_memory_where_images_have_more_patches(tmp_path, size, count):
    """Of 256, 400 and 1,024 patches: optim.batch_size, which would be lowered, plays no part in it."""
    chosen = tiny(data=config.Data(image_size=size), encoder=replace(tiny().encoder, patch_size=1))
    images = open_images(str(pictures_file(tmp_path / "pictures.npz", count=300, size=size)), "train", size=size)
    health = watch.HealthBatch(images, Training.start(chosen, 1, CPU))
    assert len(health.crops) == len(health.views.source) == len(health.masks.context) == count


def test_no_recipe_has_so_many_patches():
    """Their lines of metrics can be compared with older ones."""
    sizes = {(s.data.image_size, s.encoder.patch_size) for s in map(recipe_book.get, recipe_book.RECIPES)}
    assert (224, 16) in sizes
    assert max(watch.HEALTH_IMAGES * (side // patch) ** 2 for side, patch in sizes) <= watch.MOST_TOKENS
