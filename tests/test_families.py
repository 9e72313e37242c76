"""Every family trains, saves, resumes and is evaluated by the same machinery; what it cannot do, it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures_file, tiny
from safetensors.torch import load_file

from iwm import cli, config, recipe_book, run_folder
from iwm.actions.views import make_views
from iwm.config import Config
from iwm.evaluation.tasks.classifier import load_classifier
from iwm.model.masks import sample_masks
from iwm.model.objectives.joint import comparison_of
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime import fields
from iwm.runtime.errors import UserError
from iwm.training import loop

KINDS = {
    "latent": {"ijepa-style", "ijepa-world", "ijepa-published"},
    "pixels": {"mae", "pixel-world"},
    "joint": {"moco", "byol"},
}


def small(family: str, **optim: object) -> Config:
    """The family at the size of `tiny`, with a small projector and `tiny`'s batch."""
    base = tiny()
    made = recipe_book.FAMILIES[family](base)
    return replace(
        made,
        objective=replace(made.objective, projector_width=32, projector_dim=16),
        optim=replace(made.optim, batch_size=16, lr_batch=16, **optim),  # pyright: ignore[reportArgumentType]
    )


def prepared(tmp_path: Path, settings: Config, name: str = "run", smooth: bool = False) -> Config:
    source = tmp_path / "pictures.npz"
    if not source.exists():
        pictures_file(source, labelled=True)
        if smooth:  # colours that run from corner to corner: what is dropped can be told from what is left
            corners = torch.rand(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
            images = torch.nn.functional.interpolate(corners, (16, 16), mode="bilinear", align_corners=True)
            np.savez(source, images=(255 * images).byte().permute(0, 2, 3, 1).numpy())
    return replace(
        settings,
        data=replace(settings.data, source=str(source)),
        run=replace(settings.run, out=str(tmp_path / name)),
    )


@pytest.mark.parametrize("family", recipe_book.FAMILIES)
def test_a_short_run_learns_loads_repeats_and_starts_another(tmp_path, family):
    """The loss ends below that of knowing nothing of the image, and below where it began unless targets move."""
    settings = prepared(tmp_path, small(family, epochs=25, ema=0.9, ema_final=0.99), smooth=True)
    out = loop.pretrain(settings)
    lines = RunFolder(out).metric_lines()
    baseline = "chance_loss" if family in KINDS["joint"] else "position_mean_loss"
    assert lines[-1]["health_loss"] < lines[-1][baseline]
    if family not in KINDS["latent"]:
        assert np.mean([line["loss"] for line in lines[-3:]]) < np.mean([line["loss"] for line in lines[:3]])
    assert ("action_sensitivity" in lines[-1]) == (family not in KINDS["joint"])
    model = run_folder.load_model(str(out))
    assert model.settings == config.load(out / "config.yaml")
    assert family in KINDS[model.settings.objective.kind]

    again = replace(settings.run, out=f"{out}-again")
    short = replace(settings, optim=replace(settings.optim, epochs=1), run=again)
    first = loop.pretrain(short)
    copy = loop.pretrain(replace(short, run=replace(short.run, out=str(out) + "-copy")))
    one, two = (load_file(path / "model" / "model.safetensors") for path in (first, copy))
    assert one.keys() == two.keys() == model.state_dict().keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    started = replace(short, init=str(first), run=replace(short.run, out=str(out) + "-init"))
    assert loop.pretrain(started).is_dir()


@pytest.mark.parametrize("family", ["moco", "byol", "pixel-world"])
def test_a_run_in_two_parts_equals_one(tmp_path, family):
    whole = prepared(tmp_path, small(family, epochs=2, ema_final=1.0), "whole")
    parts = replace(whole, run=replace(whole.run, out=str(tmp_path / "parts"), save_every=4))
    straight = loop.pretrain(whole)
    out = loop.pretrain(parts)
    for newer in sorted((out / "checkpoints").glob("step-*"))[1:]:
        for file in newer.iterdir():
            file.unlink()
        newer.rmdir()
    loop.pretrain(parts)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (straight, out))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_joint_embedding_says_what_it_has_not(tmp_path, capsys):
    run = str(loop.pretrain(prepared(tmp_path, small("byol", epochs=1))))
    data = ["--data", str(tmp_path / "pictures.npz")]
    for command in (
        ["world", run, *data],
        ["finetune", run, *data, "--train", "predictor"],
        ["finetune", run, *data, "--train", "both"],
        ["efficiency", run, *data],
    ):
        assert cli.main(command) == 2, command
        assert "without a predictor" in capsys.readouterr().err
    assert cli.main(["finetune", run, *data, "--train", "last-1", "--epochs=1", "--no-baselines", "--lrs", "1e-3"]) == 0
    assert cli.main(["doctor", run]) in (0, 1)
    assert cli.main(["report", run]) == 0
    assert "joint embedding, regression" in (Path(run) / "report.html").read_text()
    model = run_folder.load_model(run)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for ask in (model.target, lambda images: model.predict(model.encode(images), model.action())):
        with pytest.raises(UserError, match="without a predictor"):
            ask(images)


def test_a_generative_world_model_is_evaluated_like_a_latent_one(tmp_path):
    run = str(loop.pretrain(prepared(tmp_path, small("pixel-world", epochs=1))))
    data = ["--data", str(tmp_path / "pictures.npz")]
    tuning = [*data, "--epochs=1", "--no-baselines", "--lrs", "1e-3", "--ratios", "1"]
    assert cli.main(["world", run, *data, "--images=2", "--bank=8"]) == 0
    assert cli.main(["finetune", run, *tuning, "--train", "predictor"]) == 0
    folder = next((Path(run) / "eval").glob("finetune-predictor-*/model.safetensors")).parent
    classifier = load_classifier(folder)
    assert classifier(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 2)
    assert not [name for name in classifier.state_dict() if "project." in name], "heads see tokens, not pixels"


def test_a_generative_world_model_says_something_else_for_another_action(tmp_path):
    out = loop.pretrain(prepared(tmp_path, small("pixel-world", epochs=3)))
    world = run_folder.load_model(str(out))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    tokens = world.encode(images)
    with torch.no_grad():
        still, bright = (world.predict(tokens, world.action(brightness=change)).values for change in (0.0, 0.3))
    assert still.shape == (2, 16, 48), "a patch of 4 x 4 pixels in three colours"
    assert (still - bright).abs().max() > 1e-4
    assert world.target(images).values.shape == still.shape


def test_maes_loss_is_the_papers_formula():
    """In float64, patch by patch: pixels normalised over the patch by the unbiased deviation, dropped patches only."""
    torch.manual_seed(0)
    model = ImageWorldModel(small("mae")).eval()
    images, indices = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), np.arange(4)
    views = make_views(images, model.space, model.settings.actions, 0, 0, indices, "cpu")
    assert torch.equal(views.source, images / 255), "no photometry"
    masks = sample_masks(model.settings.masks, model.grid, 0, 0, indices, "cpu")
    assert masks.predicted.shape == (4, 12), "three quarters of 16 patches"
    with torch.no_grad():
        output = model(views, masks)
    pixels = ((images / 255 - model.encoder.mean) / model.encoder.std).double().numpy()
    total = []
    for b in range(4):
        assert set(masks.context[b].tolist()).isdisjoint(masks.predicted[b].tolist())
        for q, position in enumerate(masks.predicted[b].tolist()):
            row, column = 4 * (position // 4), 4 * (position % 4)
            patch = pixels[b, :, row : row + 4, column : column + 4].transpose(1, 2, 0).reshape(-1)
            wanted = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            total.append(np.mean((output.prediction[b, q].double().numpy() - wanted) ** 2))
    assert output.loss.item() == pytest.approx(np.mean(total), rel=1e-5)


def test_brightness_survives_in_a_generative_world_models_targets():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16) / 2
    apart = {}
    for family in ("mae", "pixel-world"):
        model = ImageWorldModel(small(family))
        difference = model.target(image).values - model.target(1.4 * image).values
        apart[family] = float(difference.square().mean())
    assert apart["pixel-world"] > 10 * apart["mae"]


def test_moco_leaves_its_patch_projection_and_moves_its_projectors():
    torch.manual_seed(0)
    model = ImageWorldModel(small("moco")).train()
    assert not any(p.requires_grad for p in model.encoder.patch_embed.parameters())
    joint = comparison_of(model)
    before = [p.clone() for p in joint.target_projector.parameters()]
    with torch.no_grad():
        for p in joint.projector.parameters():
            p.add_(1.0)
    model.after_step(0.9)
    for old, student, teacher in zip(
        before, joint.projector.parameters(), joint.target_projector.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.9 * old + 0.1 * student.detach())


def test_init_from_another_kind_is_refused(tmp_path):
    run = loop.pretrain(prepared(tmp_path, small("mae", epochs=1)))
    with pytest.raises(UserError, match=r"was trained with objective\.kind pixels"):
        loop.initialise_from(ImageWorldModel(tiny()), str(run))


def test_settings_written_before_there_were_families_still_load():
    old = fields.to_dict(tiny())
    del old["views"]
    for name in ("kind", "invariance", "temperature", "projector_width", "projector_dim", "freeze_patches"):
        del old["objective"][name]
    del old["masks"]["ratio"]
    assert fields.from_dict(Config, old) == tiny()
