"""Ranks against brute force, planted encoders that must find everything or nothing, and what the verb promises."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures_file, tiny
from oracle import REVERSIBLE, Oracle, muted
from PIL import Image
from torch import Tensor

from evaluation.planted import corners, exported
from iwm import cli, config, recipe_book
from iwm.actions.action_space import ActionSpace
from iwm.data.sources import open_images
from iwm.evaluation.tasks import features, instance, probes
from iwm.evaluation.tasks.instance import Pictures
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.verbs.probe import Probe

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
SPACE = ActionSpace.from_config(config.Actions(), 16)


def drawn(seed: int, count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# ---- ranks ---------------------------------------------------------------------------------------------------------


def test_ranks_against_brute_force():
    gallery = drawn(0, 40, 6) * torch.tensor([1.0, 100.0, 0.01, 1.0, 3.0, 1.0]) + 5
    queries = gallery + drawn(1, 40, 6) * gallery.std(0)
    gallery[7] = gallery[3]  # copies of an image
    gallery[:, 3] = 2.0  # a number that never varies
    found = instance.retrieve(queries, gallery)

    def standardised(vector: Tensor) -> list[float]:
        columns = [[float(row[k]) for row in gallery] for k in range(6)]
        means = [sum(column) / 40 for column in columns]
        deviations = [math.sqrt(sum((x - m) ** 2 for x in c) / 40) for c, m in zip(columns, means, strict=True)]
        deviations[3] = 1.0
        return [(float(x) - m) / d for x, m, d in zip(vector, means, deviations, strict=True)]

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return round(dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)), 8)

    bank = [standardised(row) for row in gallery]
    for number in range(40):
        scores = [cosine(standardised(queries[number]), entry) for entry in bank]
        ahead = sum(score > scores[number] for score in scores)
        tied = sum(score == scores[number] for score in scores) - 1
        assert found.rank[number] == 1 + ahead + tied / 2
        assert found.first[number] == (0 if ahead else 1 / (1 + tied))
        best = sorted(range(40), key=lambda entry: -scores[entry])[:5]
        assert [scores[entry] for entry in best] == [scores[entry] for entry in found.nearest[number].tolist()]
    assert found.rank.min() >= 1
    assert set(found.first[[3, 7]].tolist()) <= {0.0, 0.5}, "of two copies either may be the one"


def test_an_encoder_that_says_the_same_of_all_images_is_at_chance():
    found = instance.retrieve(torch.ones(10, 4), torch.ones(10, 4))
    assert found.first.mean() == pytest.approx(1 / 10)
    assert (found.rank == 5.5).all()


def test_broken_features_come_last():
    queries = drawn(0, 10, 4)
    queries[2] = torch.nan
    found = instance.retrieve(queries, drawn(0, 10, 4))
    assert found.rank[2] == 10
    assert found.first[2] == 0
    assert (found.rank[[0, 1, 3]] == 1).all()
    assert (instance.retrieve(queries, queries).rank == 10).all()


def test_errors_are_those_of_the_mean_over_images():
    first = (drawn(0, 400, 1)[:, 0] > 0.3).double()
    each = instance.Retrieval(1 + (1 - first), first, torch.zeros(400, 1, dtype=torch.int64))
    found = instance.summary({"": each, "random_encoder_": each}, seed=0)
    share = float(first.mean())
    assert found["top1"] == pytest.approx(share)
    assert found["mrr"] == pytest.approx(share + (1 - share) / 2)
    assert found["top1_standard_error"] == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.2)
    assert found["random_encoder_difference_standard_error"] == 0, "the same images, found alike"


# ---- planted encoders ----------------------------------------------------------------------------------------------


class Planted(features.FrozenEncoder):
    """Knows every picture: by its number, or by nothing but noise."""

    def __init__(self, pictures: Pictures, perfect: bool) -> None:
        super().__init__()
        self.name, self.size, self.layer, self.depth = "planted", 16, 1, 1
        self.perfect, count = perfect, len(pictures.gallery)
        self.numbers = {
            image.numpy().tobytes(): number
            for images in (pictures.gallery, pictures.crops, pictures.changed)
            for number, image in enumerate(images)
        }
        self.codes = drawn(5, count, 32)

    def outputs(self, images: Tensor) -> list[Tensor]:
        rows = [self.numbers[image.numpy().tobytes()] for image in images]
        noise = drawn(int(images.sum()), len(images), 32)
        return [(self.codes[rows] if self.perfect else noise)[:, None]]


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    source = pictures_file(tmp_path / "many.npz", count=200)
    return instance.draw_pictures(open_images(str(source), "all"), 0, SPACE, 16, 0)


def test_a_perfect_encoder_finds_all_and_a_random_one_finds_none(pictures):
    count = len(pictures.gallery)
    assert count == 250
    knows = instance.look_for(Planted(pictures, perfect=True), pictures, "mean", CPU)
    assert knows.keys() == {"", "crop_"}
    assert knows["crop_"].first.mean() == knows[""].first.mean() == 1
    for found in instance.look_for(Planted(pictures, perfect=False), pictures, "mean", CPU).values():
        assert found.first.mean() < 1 / count + 3 * (1 / count / count) ** 0.5
        assert float(found.rank.mean()) == pytest.approx((count + 1) / 2, rel=0.15)


def test_pixels_find_crops_and_fewer_changed_ones(pictures):
    side, looks = instance.look_by_pixels(pictures, 16, CPU)
    assert side in (8, 16)
    for found in looks.values():
        assert found.first.mean() > 10 / len(pictures.gallery)
    assert looks["crop_"].first.mean() > looks[""].first.mean()


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_an_image_is_looked_for_by_the_same_queries_in_every_gallery(tmp_path):
    images = open_images(str(pictures_file(tmp_path / "many.npz", count=200)), "all")
    whole = instance.draw_pictures(images, 0, SPACE, 16, 0)
    part, other = (instance.draw_pictures(images, 20, SPACE, 16, seed) for seed in (0, 1))
    assert len(part.gallery) == 20
    for name in ("crops", "changed"):
        for image, query in zip(part.gallery, getattr(part, name), strict=True):
            row = int((whole.gallery == image).flatten(1).all(1).nonzero()[0])
            assert torch.equal(getattr(whole, name)[row], query)
    assert not torch.equal(part.gallery, other.gallery)
    assert (whole.changed != whole.crops).flatten(1).any(1).all(), "every query carries a change"
    assert whole.parameters.applied[:, :4].all()
    assert 0.1 < whole.parameters.applied[:, 4:].float().mean() < 0.3


# ---- undoing -------------------------------------------------------------------------------------------------------


def undone(space: ActionSpace = REVERSIBLE, wrong: bool = False, marked: bool = False) -> dict[str, float]:
    """`marked`: the darkest tenth of every image has the same colour, from which a change can be read."""
    model, images = Oracle(space=space, wrong=wrong), muted(260)
    if marked:
        images[:, :, :4] = 60
    lessons, images = images[60:], images[:60]
    parameters = space.sample(0, 0, np.arange(60), "source", always=True)
    shown = Pictures(images, images, instance.changed_by(space, images, parameters), parameters)
    looks = instance.look_undone(model, shown, lessons, 0)
    return {name: float(each.first.mean()) for name, each in looks.items()}


def test_an_oracle_that_is_told_the_change_finds_every_image_again():
    found = undone()
    assert found["undo_known_"] > 0.9
    assert found["undo_null_"] == found["target_"] < 0.6


def test_a_change_that_can_be_read_from_the_image_is_inferred():
    space = replace(REVERSIBLE, transformations=REVERSIBLE.transformations[:2])
    found = undone(space, marked=True)
    assert found["target_"] < 0.3
    assert found["undo_inferred_"] > 0.8


def test_a_wrong_world_finds_fewer_than_without_it():
    found = undone(wrong=True)
    assert found["undo_known_"] < found["target_"]


# ---- the verb ------------------------------------------------------------------------------------------------------


def probe(run: str, data: str, **options: Any) -> dict[str, Any]:
    return probes.probe(Probe(run=run, data=data, kind="instance", speed=SPEED, **options))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Photos without labels, one of them broken."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(np.load(pictures_file(tmp_path / "many.npz", count=120))["images"]):
        Image.fromarray(image.repeat(2, 0)).save(tmp_path / "photos" / f"{number:03}.png")
    (tmp_path / "photos" / "999.png").write_bytes(b"no picture")
    return str(tmp_path / "photos")


@pytest.mark.parametrize("family", ["ijepa-style", "mae", "pixel-world", "moco"])
def test_every_family_is_probed_without_labels(folder, tmp_path, family):
    settings = recipe_book.FAMILIES[family](tiny())
    settings = replace(settings, objective=replace(settings.objective, projector_width=32, projector_dim=16))
    run = RunFolder(tmp_path / "run")
    weights.export(ImageWorldModel(settings), run.model)
    config.save(settings, run.config)
    found = probe(str(run.path), folder)
    content = json.loads((run.eval / "probe-instance-photos.json").read_text())
    assert (run.eval / "probe-instance-photos.png").stat().st_size > 1000
    assert (run.eval / "probe-instance-photos-nearest.png").stat().st_size > 1000
    for who in ("", "random_encoder_", "raw_pixels_"):
        for key in ("crop_top1", "crop_mrr", "top1", "mrr"):
            assert 0 <= content[f"{who}{key}"] <= 1
            assert content[f"{who}{key}_standard_error"] >= 0
    assert content["n_val"] in (11, 12), "a tenth, with or without the broken one"
    assert content["chance"] == 1 / content["n_val"]
    assert content["mrr_chance"] > content["chance"]
    assert found["seeds"] == {"gallery": 0, "crops": 0, "changes": 0, "random_encoder": 1}
    if family == "moco":
        with pytest.raises(UserError, match="without a predictor"):
            probe(str(run.path), folder, undo=True)
    else:
        numbers = probe(str(run.path), folder, undo=True)
        assert {f"{name}{key}" for name in instance.UNDO for key in ("top1", "mrr")} <= set(numbers)


def test_undo_replaces_the_plain_result_that_it_holds_and_is_not_lost(folder, tmp_path):
    (tmp_path / "run").mkdir()
    run = exported(tmp_path / "run")
    plain = probe(run, folder)
    undone = probe(run, folder, undo=True)
    assert plain["path"] == undone["path"]
    assert {key: undone[key] for key in plain if key.endswith(("top1", "mrr"))} == {
        key: value for key, value in plain.items() if key.endswith(("top1", "mrr"))
    }
    again = probe(run, folder)
    assert again["path"] != undone["path"]
    assert "undo_known_top1" in json.loads(Path(undone["path"]).read_text())
    assert probe(run, folder, gallery=5)["n_val"] == 5


def test_layers_student_and_another_encoder_go_with_it(folder, tmp_path):
    (tmp_path / "run").mkdir()
    run = exported(tmp_path / "run")
    found = probe(run, folder, layers="all", encoder=run)
    assert Path(found["path"]).name == "probe-instance-layers2-beside-run-photos.json"
    alone = probe(run, folder)
    for name in ("", "crop_", "random_encoder_", "random_encoder_crop_"):
        blocks = name.replace("crop_", "") + "last_block_" + "crop_" * name.endswith("crop_")
        assert found[f"{blocks}mrr"] == alone[f"{name}mrr"]
    assert found["other_encoder_top1"] == found["top1"]
    student = probe(run, folder, student=True, baselines=False)
    assert student["encoder"] == "student encoder"
    assert "random_encoder_top1" not in student


def test_options_that_would_do_nothing_are_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    run = exported(tmp_path / "run")
    source, val = corners(tmp_path)
    assert cli.main(["probe", run, "--data", source, "--undo"]) == 2
    assert "--undo belongs to --kind instance; leave it out with --kind linear" in capsys.readouterr().err
    assert cli.main(["probe", run, "--data", source, "--kind", "knn", "--gallery", "9"]) == 2
    assert "--gallery belongs to --kind instance" in capsys.readouterr().err
    assert cli.main(["probe", run, "--data", source, "--kind", "instance", "--gallery", "1"]) == 2
    assert "--gallery 1: in one image there is none to look for; give 0, or 2 and more." in capsys.readouterr().err
    np.savez(tmp_path / "one.npz", images=np.load(source)["images"], val_images=np.load(val)["images"][:1])
    with pytest.raises(UserError, match="holds a single image, too few to look for one"):
        probe(run, str(tmp_path / "one.npz"))
