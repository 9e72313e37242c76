"""Finetuning learns a planted task, leaves the frozen encoder alone, counts what it says and can be loaded again."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

from evaluation.planted import corners, exported
from iwm import config, run_folder, verbs
from iwm.evaluation.tasks import classifier, finetune, tuning
from iwm.evaluation.uncertainty import accuracy_error
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices
from iwm.runtime.errors import UserError
from iwm.verbs.finetune import Finetune
from iwm.verbs.shared import Classification, Schedule

SPEED = config.Speed(precision="fp32", device="cpu", workers=0)
QUICK = Classification(lrs=(3e-3,), ratios=(1.0,), views=1, schedule=Schedule(epochs=1, search_epochs=1, batch_size=64))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return corners(tmp_path_factory.mktemp("source"), train=480)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return exported(tmp_path)


def tune(run, source, train="predictor", predictor: Any = "pretrained", settings=QUICK, **options):
    fields = {**verbs.part(settings, Classification), "train": train, "predictor": predictor, "speed": SPEED}
    return finetune.finetune(
        Finetune(run=run, data=source[0], val=source[1], **{**fields, "baselines": False, **options})
    )


def test_a_finetuned_predictor_solves_what_a_mean_cannot_and_leaves_the_encoder_as_it_was(run, source):
    before = (Path(run) / "model" / "model.safetensors").read_bytes()
    settings = Classification(
        lrs=(1e-3, 5e-3), ratios=(1.0,), views=1, schedule=Schedule(epochs=12, search_epochs=3, batch_size=32)
    )
    found = tune(run, source, predictor="random", settings=settings)
    assert found["top1"] > 0.9
    assert [row["lr"] for row in found["tried"]] == [1e-3, 5e-3]
    assert (Path(run) / "model" / "model.safetensors").read_bytes() == before
    tuned = classifier.load_classifier(found["weights"])
    frozen = run_folder.load_model(run).target_encoder
    for name, value in frozen.state_dict().items():
        assert torch.equal(tuned.encoder.state_dict()[name], value), name
    arrays = np.load(source[1])
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    guesses = classifier.predict(tuned, images, devices.CPU)
    torch.testing.assert_close(guesses.sum(1), torch.ones(160))
    # The head learned from tokens rounded to float16: a borderline image may tip over.
    top1 = float((guesses.argmax(1).numpy() == arrays["labels"]).mean())
    assert top1 == pytest.approx(found["top1"], abs=0.02)


def test_a_result_says_all_that_it_promises(run, source):
    found = tune(run, source, baselines=True)
    assert Path(found["path"]) == Path(run) / "eval" / "finetune-predictor-pretrained-corners.json"
    content = json.loads(Path(found["path"]).read_text())
    wanted = {"top1", "top5", "trainable_parameters", "flops_per_image", "train_images_per_second", "chosen", "tried"}
    assert wanted | {"random_encoder_top1", "raw_pixels_top1"} <= set(content)
    for top1 in ("top1", "random_encoder_top1", "raw_pixels_top1"):
        assert content[f"{top1}_standard_error"] == accuracy_error(content[top1], content["n_val"])
    assert content["augmentation"] == "none"
    assert Classification(views=3).augmentation == "3 views of an image, drawn once"
    timm = Classification(views=0, augment="timm", schedule=Schedule(mixup=0.8))
    assert timm.augmentation == "a fresh view of an image every epoch, RandAugment and erasing, mixup 0.8, cutmix 0"
    assert Path(found["path"]).with_suffix(".png").is_file()
    model = run_folder.load_model(run)
    head = classifier.AttentiveHead(32, 2)
    counted = sum(p.numel() for part in (model.predictor, head) for p in part.parameters())
    assert content["trainable_parameters"] == counted
    meta = json.loads((Path(content["weights"]) / "config.json").read_text())
    assert meta["classifier"]["classes"] == content["classes"]
    assert meta["actions"] == model.space.spec()


def test_repeats_are_equal_bit_for_bit_and_seeds_have_names_of_their_own(run, source):
    first = tune(run, source)
    weights = (Path(first["weights"]) / "model.safetensors").read_bytes()
    again = tune(run, source)
    assert first["path"] == again["path"]
    assert (Path(again["weights"]) / "model.safetensors").read_bytes() == weights
    other = tune(run, source, seed=1)
    assert Path(other["path"]).name == "finetune-predictor-pretrained-seed1-corners.json"
    assert (Path(first["weights"]) / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("train", "moves"),
    [
        ("predictor", {"predictor", "head"}),
        ("head", {"head"}),
        ("encoder", {"encoder.patch_embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "head"}),
        ("last-1", {"encoder.blocks.1", "encoder.norm", "head"}),
        ("both", {"encoder.patch_embed", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "predictor", "head"}),
    ],
)
def test_only_what_is_named_learns(run, source, train, moves):
    found = tune(run, source, train)
    tuned = classifier.load_classifier(found["weights"]).state_dict()
    start = classifier.load_classifier(found["started_from"]).state_dict() if train == "both" else None
    fresh = finetune.build(
        run_folder.load_model(run), Classification(train=train), classes=("a", "b"), size=16
    ).state_dict()
    changed = [n.split(".") for n, value in (start or fresh).items() if not torch.equal(value, tuned[n])]
    parts = {".".join(n[: 3 if n[1] == "blocks" else 2] if n[0] == "encoder" else n[:1]) for n in changed}
    assert parts == moves


def test_a_random_predictor_shares_nothing_but_its_shape_and_sees_its_context(run):
    model = run_folder.load_model(run)
    built = finetune.build(model, Classification(predictor="random"), ("a", "b"), 16)
    pretrained = finetune.build(model, Classification(), ("a", "b"), 16)
    assert built.predictor is not None
    assert pretrained.predictor is not None
    own = dict(model.predictor.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in pretrained.predictor.named_parameters())
    assert not torch.equal(built.predictor.embed.weight, own["embed.weight"])
    tokens = torch.randn(2, 16, 32)
    predicted = built.predictor(tokens, torch.zeros(2, model.space.dim))
    assert not torch.allclose(predicted[0], predicted[1])
    for name, value in built.head.state_dict().items():
        assert torch.equal(value, pretrained.head.state_dict()[name])


def test_tokens_not_kept_give_the_same_training(run, source, monkeypatch):
    first = tune(run, source)
    monkeypatch.setattr(devices, "free_memory", lambda: 1_500_000)  # the pictures fit, four times their tokens do not
    second = tune(run, source)
    assert first["tokens_kept"]
    assert not second["tokens_kept"]
    assert second["top1"] == pytest.approx(first["top1"], abs=0.1)


def test_pictures_that_do_not_fit_into_memory_are_refused(run, source, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: 900_000)
    with pytest.raises(UserError, match="lower --views or --size"):
        tune(run, source)


def test_a_shorter_predictor_is_the_first_blocks_of_the_pretrained_one(run):
    model = run_folder.load_model(run)
    built = finetune.build(model, Classification(depth=1), ("a", "b"), 16)
    assert built.predictor is not None
    assert len(built.predictor.blocks) == 1
    own = model.predictor.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in built.predictor.state_dict().items())
    tokens = torch.randn(2, 16, 32)
    kept = copy.deepcopy(model.predictor)
    kept.blocks = kept.blocks[:1]
    null = torch.zeros(2, model.space.dim)
    torch.testing.assert_close(built.predictor(tokens, null), kept(tokens, null))
    other = finetune.build(model, Classification(depth=1, predictor="random"), ("a", "b"), 16)
    assert tuning.trainable_of(other) == tuning.trainable_of(built)
    with pytest.raises(UserError, match="more than the predictor's 2 blocks"):
        finetune.build(model, Classification(depth=3), ("a", "b"), 16)


def sighted() -> ImageWorldModel:
    """An untrained model whose predictor heeds tokens and action (AdaLN starts as the identity)."""
    torch.manual_seed(0)
    predictor = config.Predictor(depth=2, width=32, conditioning="feature", init="xavier")
    return ImageWorldModel(tiny(predictor=predictor)).eval()


def test_one_query_is_the_middle_one_and_actions_are_random_in_training_only():
    model = sighted()
    tokens = torch.randn(4, 16, 32)
    null = torch.zeros(4, model.space.dim)
    one = finetune.build(model, Classification(queries="one"), ("a", "b"), 16)
    middle = model.predictor(tokens, null, queries=torch.full((4, 1), 10))
    torch.testing.assert_close(one.classify(tokens), one.head(middle))
    told = finetune.build(model, Classification(action="random"), ("a", "b"), 16)
    plain = finetune.build(model, Classification(), ("a", "b"), 16).eval()
    first, second = told.train().classify(tokens), told.classify(tokens)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(told.eval().classify(tokens), plain.classify(tokens))


def test_variants_are_saved_as_they_were_trained(run, source):
    settings = replace(QUICK, depth=1, queries="one", action="random", drop_path=0.3)
    found = tune(run, source, settings=settings)
    assert Path(found["path"]).name == "finetune-predictor-pretrained-depth1-one-query-random-action-corners.json"
    tuned = classifier.load_classifier(found["weights"])
    assert tuned.queries == "one"
    assert tuned.predictor is not None
    assert len(tuned.predictor.blocks) == found["predictor_depth"] == 1
    images = torch.from_numpy(np.load(source[1])["images"]).permute(0, 3, 1, 2)
    top1 = (classifier.predict(tuned, images, devices.CPU).argmax(1).numpy() == np.load(source[1])["labels"]).mean()
    assert top1 == pytest.approx(found["top1"], abs=0.02)


def test_the_whole_recipe_of_augmentation_trains_and_repeats(run, source):
    schedule = replace(QUICK.schedule, mixup=0.8, cutmix=1.0, smoothing=0.1, ema=0.99)
    settings = replace(QUICK, views=0, augment="timm", drop_path=0.1, schedule=schedule)
    one, two = (tune(run, source, "last-1", settings=settings) for _ in range(2))
    assert not one["tokens_kept"]
    assert one["confusion"] == two["confusion"]
    mixed_predictor = tune(run, source, settings=replace(QUICK, schedule=schedule))
    assert not mixed_predictor["tokens_kept"]  # mixed pictures go through the frozen encoder every time


def test_drop_path_reaches_only_what_learns():
    model = sighted()
    built = finetune.build(model, Classification(drop_path=0.4), ("a", "b"), 16).train()
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    tokens = built.encoder.tokens(images)
    assert torch.equal(tokens, built.encoder.tokens(images))
    assert not torch.equal(built.classify(tokens), built.classify(tokens))
    moved = finetune.build(model, Classification(train="encoder", drop_path=0.4), ("a", "b"), 16).train()
    assert not torch.equal(moved.encoder.tokens(images), moved.encoder.tokens(images))
    last = finetune.build(model, Classification(train="last-1", drop_path=0.4), ("a", "b"), 16).train()
    embedded = last.encoder.embed(images)
    assert torch.equal(last.encoder.blocks[0](embedded), last.encoder.blocks[0](embedded))
    assert not torch.equal(last.encoder.blocks[1](embedded), last.encoder.blocks[1](embedded))


def test_a_result_tells_how_many_threads_it_ran_on(run, tmp_path, monkeypatch):
    source = corners(tmp_path, train=64, val=32)  # few: more threads than there are cores left take their time
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    asked = before + 1
    found = tune(run, source, speed=replace(SPEED, threads=asked))
    assert found["hardware"]["threads"] == asked
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lrs": ()}, "--lrs nothing"),
        ({"lrs": (1e-3, -1e-3)}, "all above 0"),
        ({"ratios": (0.0,)}, "--ratios 0.0"),
        ({"views": -1}, "--views"),
        ({"drop_path": 1.0}, "--drop-path 1.0"),
    ],
)
def test_bad_settings(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        Classification(**wrong)


@pytest.mark.parametrize(
    ("train", "sentence"),
    [("predictr", "did you mean 'predictor'"), ("last-0", "no way to train"), ("last-3", "at most last-2")],
)
def test_bad_ways_to_train(run, source, train, sentence):
    with pytest.raises(UserError, match=sentence):
        tune(run, source, train)


def test_bad_runs(run, source, tmp_path):
    with pytest.raises(UserError, match="encoder without a predictor"):
        tune("timm:vit_tiny_patch16_224", source)
    with pytest.raises(UserError, match="no finetuned classifier"):
        classifier.load_classifier(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be read"):
        classifier.load_classifier(Path(run) / "model")


def test_end_to_end_starts_only_from_this_runs_predictor_and_these_classes(run, source, tmp_path):
    first = tune(run, source)["weights"]
    both = tune(run, source, "both", start=first)
    assert both["started_from"] == first
    with pytest.raises(UserError, match="leave it out with --train predictor"):
        tune(run, source, start=both["weights"])
    (tmp_path / "other").mkdir()
    other = exported(tmp_path / "other", seed=1)
    arrays = dict(np.load(source[0]))
    np.savez(tmp_path / "named.npz", **arrays, classes=np.array(["differ", "equal"]))
    for run_of, data, start in (
        (other, source, first),  # another encoder of the same shape
        (run, source, both["weights"]),  # the encoder has moved
        (run, (str(tmp_path / "named.npz"), ""), first),  # as many classes, but others
        (run, source, tune(run, source, settings=replace(QUICK, depth=1))["weights"]),
    ):
        with pytest.raises(UserError, match="does not hold a predictor trained on this run for these classes"):
            tune(run_of, data, "both", start=start)


def test_end_to_end_starts_only_from_a_predictor_that_began_and_was_trained_as_its_control_is(run, source):
    """Else a random predictor would be the pretrained one, and a control would have fewer updates, both in silence."""
    first = tune(run, source)["weights"]
    with pytest.raises(UserError, match="comes from a pretrained predictor, not from a random one"):
        tune(run, source, "both", "random", start=first)
    longer = replace(QUICK, schedule=replace(QUICK.schedule, epochs=QUICK.schedule.epochs + 1))
    there = f"was trained with epochs {QUICK.schedule.epochs}, but the predictor of its control"
    with pytest.raises(UserError, match=there):
        tune(run, source, "both", settings=longer, start=first, baselines=True)
    apart = tune(run, source, "both", settings=longer, start=first)
    assert apart["settings"]["start_settings"] == {"epochs": QUICK.schedule.epochs}
    assert "start_settings" not in tune(run, source, "both", start=first)["settings"]


def test_a_finetuning_outlives_a_control_that_fails(run, source, monkeypatch):
    fit = finetune.ClassificationWork.fit

    def failing(self, model, settings, start="", title=""):
        if title == "random encoder":
            raise UserError("the control fails")
        return fit(self, model, settings, start, title)

    monkeypatch.setattr(finetune.ClassificationWork, "fit", failing)
    with pytest.raises(UserError, match="the control fails"):
        tune(run, source, baselines=True)
    (path,) = (Path(run) / "eval").glob("finetune-*.json")
    kept = json.loads(path.read_text())
    assert "random_encoder_top1" not in kept
    assert classifier.load_classifier(kept["weights"]).names
    monkeypatch.setattr(finetune.ClassificationWork, "fit", fit)
    whole = tune(run, source, baselines=True)
    assert Path(whole["path"]) == path
    assert whole["top1"] == kept["top1"]
    assert "random_encoder_top1" in json.loads(path.read_text())


def test_the_trials_of_end_to_end_training_begin_from_nothing_that_knows_the_tenth(run, source, tmp_path):
    """Labels at random can be learned by heart only: a trial that is right about the tenth has seen it."""
    arrays = dict(np.load(source[0]))
    images, labels = arrays["images"][:100], np.random.default_rng(0).permutation(np.arange(100) % 2)
    np.savez(tmp_path / "by-heart.npz", images=images, labels=labels)
    data = str(tmp_path / "by-heart.npz"), source[1]
    long = replace(QUICK, schedule=Schedule(epochs=80, batch_size=32), lrs=(5e-3,))
    first = tune(run, data, settings=long)["weights"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    known = classifier.predict(classifier.load_classifier(first), pixels, devices.CPU).argmax(1).numpy()
    assert (known == labels).mean() > 0.95, "learned by heart"
    brief = replace(QUICK, schedule=Schedule(epochs=1, search_epochs=1, batch_size=32), lrs=(1e-5, 2e-5))
    both = tune(run, data, "both", settings=brief, start=first)
    assert max(row["tenth_top1"] for row in both["tried"]) < 0.9
    tuned = classifier.predict(classifier.load_classifier(both["weights"]), pixels, devices.CPU).argmax(1).numpy()
    assert (tuned == labels).mean() > 0.95, "the training itself does begin there"
