"""Segmentation learns a planted task and moves only what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from evaluation.planted import exported
from iwm import config, run_folder, verbs
from iwm.data.annotations import annotated_splits
from iwm.data.crops import IGNORED
from iwm.data.sources import open_images
from iwm.evaluation.tasks import segmentation
from iwm.evaluation.tasks.fitting import cross_entropy
from iwm.evaluation.tasks.segmenter import load_segmenter, segment
from iwm.runtime import devices
from iwm.runtime.errors import UserError
from iwm.verbs.segment import Segment, SegmentSettings
from iwm.verbs.shared import Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK = SegmentSettings(
    lrs=(3e-3,), ratios=(1.0,), views=1, channels=8, schedule=Schedule(epochs=1, search_epochs=1, batch_size=8)
)
COLOURS = np.array([[30, 30, 30], [230, 40, 40], [40, 40, 230]], dtype=np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Non-square pictures of a dark ground with a red and a blue box; some pixels do not count."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(["ground", "red", "blue"])}
    for prefix, number in (("", 48), ("val_", 8)):
        masks = np.zeros((number, 24, 28), dtype=np.uint8)
        for mask in masks:
            for kind in (1, 2):
                top, left = generator.integers(0, 14), generator.integers(0, 18)
                mask[top : top + 10, left : left + 10] = kind
        images = COLOURS[masks] + generator.integers(0, 20, (*masks.shape, 3)).astype(np.uint8)
        masks[:, :2, :2] = 255
        arrays |= {f"{prefix}images": images, f"{prefix}masks": masks}
    path = tmp_path_factory.mktemp("source") / "boxes.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return exported(tmp_path)


def do(run: str, source: str, train: str = "head", settings: SegmentSettings = QUICK, **options: Any) -> dict[str, Any]:
    fields = {**verbs.part(settings, SegmentSettings), "train": train, "head": "linear", "speed": SPEED}
    return segmentation.segment(Segment(run=run, data=source, **{**fields, "baselines": False, **options}))


def test_pixels_that_do_not_count_teach_nothing():
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    assert float(cross_entropy(logits, labels)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels))
    )
    labels[0] = IGNORED
    one = torch.nn.functional.cross_entropy(logits[1:], labels[1:])
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(one))
    assert float(cross_entropy(logits, torch.full_like(labels, IGNORED))) == 0.0


def test_a_trained_head_segments_and_its_weights_say_the_same(run, source):
    before = (Path(run) / "model" / "model.safetensors").read_bytes()
    settings = replace(QUICK, lrs=(1e-4, 1e-2), views=2, schedule=Schedule(epochs=24, search_epochs=2, batch_size=8))
    found = do(run, source, settings=settings, size=16, baselines=True)
    assert found["miou"] > 0.6 > found["majority_miou"]
    assert found["chosen"] == {"lr": 1e-2, "ratio": 1.0}
    assert {"random_encoder_miou", "pixel_accuracy", "trainable_parameters", "settings"} <= set(found)
    assert len(found["per_class_iou"]) == 3
    assert found["classes"] == ["ground", "red", "blue"]
    assert found["miou"] == pytest.approx(np.mean(found["per_class_iou"]))
    assert found["trainable_parameters"] == 4 * 32 * 3 + 3
    assert Path(found["path"]) == Path(run) / "eval" / "segment-head-linear-boxes.json"
    assert json.loads(Path(found["path"]).read_text())["miou"] == found["miou"]
    assert Path(found["path"]).with_suffix(".png").is_file()
    assert (Path(run) / "model" / "model.safetensors").read_bytes() == before
    trained = load_segmenter(found["weights"])
    val = annotated_splits(source).val
    pairs = [val.load(index) for index in range(len(val))]
    guesses = segment(trained, torch.stack([image for image, _ in pairs]))
    truth = torch.stack([mask for _, mask in pairs]).long()
    miou = MulticlassJaccardIndex(3, ignore_index=IGNORED)(guesses, truth)
    assert float(miou) == pytest.approx(found["miou"], abs=1e-6)


@pytest.mark.parametrize(
    ("train", "head", "moves"),
    [
        ("head", "linear", {"head"}),
        ("predictor", "upernet", {"predictor", "head"}),
        ("encoder", "linear", {"encoder", "head"}),
        ("both", "linear", {"encoder", "predictor", "head"}),
    ],
)
def test_only_what_is_named_learns(run, source, train, head, moves):
    found = do(run, source, train, head=head)
    model = run_folder.load_model(run)
    trained = load_segmenter(found["weights"]).state_dict()
    settings = replace(QUICK, train=train, head=head)
    fresh = segmentation.build(model, settings, ("ground", "red", "blue"), found["window"])
    start = load_segmenter(found["started_from"]).state_dict() if train == "both" else fresh.state_dict()
    learned = dict(fresh.named_parameters())
    changed = {name for name, value in start.items() if name in learned and not value.equal(trained[name])}
    assert {name.split(".")[0] for name in changed} == moves
    assert not any("pos_embed" in name or "predictor.project" in name for name in changed)
    assert found["trainable_parameters"] == sum(p.numel() for p in fresh.parameters() if p.requires_grad)


def test_a_random_predictor_is_another_one(run):
    model = run_folder.load_model(run)
    ours, control = (
        segmentation.build(model, replace(QUICK, train="predictor", predictor=kind, head="linear"), ("a", "b"), 16)
        for kind in ("pretrained", "random")
    )
    assert ours.predictor is not None
    assert control.predictor is not None
    assert ours.predictor.embed.weight.equal(model.predictor.embed.weight)
    assert not control.predictor.embed.weight.equal(model.predictor.embed.weight)
    assert ours.encoder.state_dict()["blocks.0.mlp.fc1.weight"].equal(
        model.target_encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    )


def test_remembered_features_give_the_same_training(run, source, monkeypatch):
    first = do(run, source)
    again = do(run, source)
    assert first["path"] == again["path"]
    assert first["per_class_iou"] == again["per_class_iou"]
    monkeypatch.setattr(devices, "free_memory", lambda: 0)
    forgetful = do(run, source)
    assert forgetful["miou"] == pytest.approx(first["miou"], abs=0.02)


def test_crops_of_an_epoch_are_drawn_once_and_repeat(source):
    examples = annotated_splits(source).train
    rows = np.arange(len(examples))
    few = segmentation.Crops(examples, replace(QUICK, views=2), 16, None)
    pixels = torch.stack([few.batch(rows, 0, epoch)[0] for epoch in range(12)])
    assert all(len(pixels[:, row].unique(dim=0)) == 2 for row in range(5))
    fresh = segmentation.Crops(examples, replace(QUICK, views=0), 16, None)
    assert len(torch.stack([fresh.batch(rows[:1], 0, epoch)[0][0] for epoch in range(8)]).unique(dim=0)) == 8
    masks = few.batch(rows, 0, 3)[1]
    assert masks.equal(
        torch.stack([few.crop(int(view), row)[1] for row, view in enumerate(few._views(rows, 0, 3))]).long()
    )
    asked: list[int] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        asked.append(len(pixels))
        return pixels.float().flatten(2).mean(2)[:, None, None]

    remembered = segmentation.Crops(examples, replace(QUICK, views=2), 16, encode)
    for epoch in range(12):
        tokens, masks = remembered.batch(rows, 0, epoch)
        crops, wanted = few.batch(rows, 0, epoch)
        assert tokens.allclose(encode(crops).half())
        asked.pop()
        assert masks.equal(wanted)
    assert sum(asked) == 2 * len(rows)


@pytest.mark.parametrize("views", [1, 2, 0])
def test_a_moving_encoder_is_shown_the_very_crops_of_a_frozen_one(source, views):
    examples = annotated_splits(source).train
    rows = np.arange(len(examples))
    frozen, moving = (
        segmentation.Crops(examples, replace(QUICK, train=train, views=views), 16, None)
        for train in ("head", "encoder")
    )
    for epoch in (0, 5):
        pairs = zip(frozen.batch(rows, 0, epoch), moving.batch(rows, 0, epoch), strict=True)
        assert all(one.equal(other) for one, other in pairs)


def test_a_result_names_the_augmentation(run, source):
    for views, words in ((2, "2 crops of an image, drawn once"), (0, "a fresh crop of an image every epoch")):
        for train in ("head", "encoder"):
            assert do(run, source, train, settings=replace(QUICK, views=views))["augmentation"] == words


def test_windows_follow_the_images_but_not_beyond_reason(source):
    splits = annotated_splits(source)
    assert segmentation.window_of(splits, 16) == 24
    assert segmentation.window_of(splits, 5) == 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train": "heads"}, "did you mean 'head'"),
        ({"val": "absent"}, "There is no 'absent'"),
        ({"size": -4}, "--size -4"),
        ({"train": "predictor", "settings": replace(QUICK, depth=3)}, "more than the predictor's 2 blocks"),
    ],
)
def test_bad_options(run, source, options, sentence):
    with pytest.raises(UserError, match=sentence):
        do(run, source, **options)


def test_bad_runs_and_sources(run, source, tmp_path):
    with pytest.raises(UserError, match="encoder without a predictor"):
        do("timm:vit_tiny_patch16_224", source)
    arrays = dict(np.load(source))
    few = tmp_path / "few.npz"
    np.savez(
        few, **{name: value[:2] if "images" in name or "masks" in name else value for name, value in arrays.items()}
    )
    with pytest.raises(UserError, match="2 training images"):
        do(run, str(few))


def test_both_stages_measure_their_baselines_once(run, source, monkeypatch):
    titles: list[str] = []
    fit = segmentation.SegmentationWork.fit

    def listening(self, model, settings, start="", title=""):
        titles.append(title)
        return fit(self, model, settings, start, title)

    monkeypatch.setattr(segmentation.SegmentationWork, "fit", listening)
    found = do(run, source, "both", baselines=True)
    assert titles == ["segment predictor", "segment both", "random encoder"]
    assert "random_encoder_miou" in found


def test_end_to_end_starts_only_from_this_runs_predictor_and_these_classes(run, source, tmp_path):
    first = do(run, source, "predictor")["weights"]
    both = do(run, source, "both", start=first)
    assert both["started_from"] == first
    with pytest.raises(UserError, match="leave it out with --train predictor"):
        do(run, source, "predictor", start=both["weights"])
    (tmp_path / "other").mkdir()
    arrays: dict[str, Any] = dict(np.load(source))
    arrays["classes"] = np.array(["ground", "blue", "red"])
    np.savez(tmp_path / "named.npz", **arrays)
    for run_of, data, start in (
        (exported(tmp_path / "other", seed=1), source, first),
        (run, source, both["weights"]),
        (run, str(tmp_path / "named.npz"), first),
    ):
        with pytest.raises(UserError, match="does not hold a predictor trained on this run for these classes"):
            do(run_of, data, "both", start=start)


def test_a_part_of_the_predictor_comes_back(run, source):
    found = do(run, source, "predictor", settings=replace(QUICK, depth=1))
    predictor = load_segmenter(found["weights"]).predictor
    assert predictor is not None
    assert len(predictor.blocks) == 1


def test_what_is_tested_on_is_never_what_pretraining_saw(run, source, tmp_path):
    arrays: dict[str, Any] = {name: value for name, value in np.load(source).items() if not name.startswith("val_")}
    path = str(tmp_path / "alone.npz")
    np.savez(path, **arrays)
    pretraining = {open_images(path).path(index) for index in range(len(open_images(path)))}
    tested: list[str] = []
    evaluate = segmentation.evaluate

    def listening(segmenter, examples, rows, session):
        if examples.split == "val":
            tested.extend(examples.path(int(row)) for row in rows)
        return evaluate(segmenter, examples, rows, session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "evaluate", listening)
        do(run, path, seed=1)
    assert tested
    assert pretraining.isdisjoint(tested)
    with pytest.raises(UserError, match="the very images that are trained on"):
        do(run, path, val=path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scales": (2.0, 0.5)}, "--scales 2.0 0.5"),
        ({"scales": (0.0, 1.0)}, "--scales 0.0 1.0"),
        ({"schedule": Schedule(batch_size=1)}, "too few for UperNet"),
    ],
)
def test_bad_settings(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        SegmentSettings(**wrong)
