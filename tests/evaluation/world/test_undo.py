"""An oracle restores what a probe of clean images reads; a wrong world does not."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from oracle import REVERSIBLE, Oracle
from tensor_memory import MemoryPeak

from iwm import config
from iwm.actions.transformation import Transformation
from iwm.evaluation.world import undo
from iwm.evaluation.world.strips import source_only
from iwm.runtime.randomness import permutation
from iwm.verbs.undo import Undo


def tinted(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """8 px images, half of them reddish and the others bluish, with noise, inside the reversible range."""
    labels = torch.arange(count) % 2
    images = torch.randint(90, 140, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    images[labels == 0, 0] += 40
    images[labels == 1, 2] += 40
    return images.byte(), labels


def measured(wrong: bool = False) -> dict:
    model = Oracle(space=REVERSIBLE, size=8, wrong=wrong)
    return undo.measure(model, *tinted(120), *tinted(40, seed=1), 2, guesses=1)


def test_an_oracle_restores_clean_accuracy() -> None:
    found = measured()
    kinds = {"nothing", "negative", "mirror", "jitter", "jitter, twice the range", "mixture"}
    assert found["corruptions"].keys() == kinds
    assert found["clean_top1"] == 1
    assert found["clean_predicted_top1"] == 1
    for name, row in found["corruptions"].items():
        assert row["true_action"] == 1, name
    negative = found["corruptions"]["negative"]
    assert negative["before"] < 0.2, "a negative of red looks blue"
    assert negative["found_by_density"] == 1, "nothing clean is so far from grey the other way"
    assert found["candidates"] == 4
    untouched = found["corruptions"]["nothing"]
    assert untouched["before"] == found["clean_top1"]
    assert untouched["true_action"] == found["clean_predicted_top1"]
    assert untouched["found_by_density"] == 1, "a clean image is left as it is"


def test_the_most_frequent_class_is_that_of_the_training_images() -> None:
    train, test = tinted(120), tinted(40, seed=1)
    rows = torch.cat([(train[1] == 0).nonzero()[:, 0], (train[1] == 1).nonzero()[:20, 0]])
    exam = torch.cat([(test[1] == 1).nonzero()[:, 0], (test[1] == 0).nonzero()[:5, 0]])
    model = Oracle(space=REVERSIBLE, size=8)
    found = undo.measure(model, train[0][rows], train[1][rows], test[0][exam], test[1][exam], 2, guesses=1)
    assert found["majority_top1"] == pytest.approx(5 / 25)


def test_a_wrong_world_restores_nothing() -> None:
    found = measured(wrong=True)["corruptions"]["jitter"]
    assert found["true_action"] < found["before"]


def test_a_mixture_always_carries_something() -> None:
    alone = source_only(REVERSIBLE)
    drawn = undo.corruptions(REVERSIBLE, alone, 0)["mixture"](200, "test")
    assert drawn.applied[:, 2:].any(dim=1).all()
    assert 0.3 < drawn.applied[:, 2:].all(dim=1).float().mean() < 0.7
    assert torch.equal(drawn.values, undo.corruptions(REVERSIBLE, alone, 0)["mixture"](200, "test").values)


def test_training_images_are_corrupted_batch_by_batch_as_they_are_together() -> None:
    model, (images, _) = Oracle(space=REVERSIBLE, size=8), tinted(1000)
    kinds = undo.corruptions(REVERSIBLE, source_only(REVERSIBLE), 0)
    with MemoryPeak() as peak:
        copies = undo._corrupted_copies(model, images, kinds, 0)
    assert peak.bytes < images.numel() * 4, "never are all images held as numbers"
    clean, order = images.float() / 255, torch.from_numpy(permutation(0, "undo copies", 0, 1000))
    assert torch.equal(copies[0], undo.pooled_target(model, clean))
    for number, corrupt in enumerate(kinds.values()):
        mine = order % len(kinds) == (number + 1) % len(kinds)
        corrupted = REVERSIBLE.apply(clean[mine], corrupt(int(mine.sum()), "train 1"))
        assert torch.equal(copies[2][mine], undo.pooled_target(model, corrupted)), "the second corrupted copy"


def test_twice_the_range_is_the_strong_level() -> None:
    def extremes(level: Literal["destructive", "strong"], strength: str) -> torch.Tensor:
        space = undo.ActionSpace.from_config(config.Actions(level=level), 32)
        values = undo.corruptions(space, source_only(space), 0)[strength](4000, "test").values[:, :4]
        return torch.stack([values.amin(0), values.amax(0)])

    strong, doubled = extremes("strong", "jitter"), extremes("destructive", "jitter, twice the range")
    torch.testing.assert_close(doubled[:, [0, 1, 3]], strong[:, [0, 1, 3]], atol=1e-5, rtol=0)


def test_a_transformation_of_the_users_is_not_corrupted_beyond_its_range() -> None:
    fog = Transformation(
        name="fog", apply=lambda x, _: x, graded=True, both=True, low=0.0, high=1.0, neutral=0.0, probability=1.0
    )
    jitter = dataclasses.replace(fog, name="jitter", both=False)
    kinds = undo.corruptions(undo.ActionSpace((fog, jitter), set="mine"), [1], 0)
    assert list(kinds) == ["jitter alone", "jitter", "jitter, twice the range", "mixture"]
    values = kinds["jitter, twice the range"](1000, "test").values[:, 0]
    assert (float(values.amin()), float(values.amax())) == (pytest.approx(0, abs=0.01), 1.0)


def test_corruptions_are_the_same_whatever_a_model_was_trained_on() -> None:
    """Else what a model of the level `strong` reads of them could not be compared."""

    def before(level: Literal["destructive", "strong"]) -> dict[str, float]:
        space = undo.ActionSpace.from_config(config.Actions(level=level), 8)
        model = Oracle(space=space, size=8, clean=torch.zeros(40, 3, 8, 8))
        found = undo.measure(model, *tinted(60), *tinted(40, seed=1), 2, guesses=1)["corruptions"]
        return {name: row["before"] for name, row in found.items()}

    assert before("strong") == before("destructive")


def test_the_strength_of_the_augmented_probe_is_chosen_on_images_not_learned_from() -> None:
    """Copies that are all alike: whoever is asked about a copy of what it has learned takes the weakest strength."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    values = torch.randn(200, 150, generator=generator)
    values[:, 0] += 0.8 * labels
    alone = undo.fit_probe([values], labels, 2, 0)
    copied = undo.fit_probe([values] * 4, labels, 2, 0)
    torch.testing.assert_close(copied.weight, alone.weight, atol=1e-2, rtol=0)
    learned = (copied.logits(values).argmax(1) == labels).float().mean()
    assert learned < 1, "regularised"


def test_candidates_undo_all_that_a_source_may_carry() -> None:
    space = undo.ActionSpace.from_config(config.Actions(set="camera"), 16)
    tried = undo.candidates(space, space, 3, 0)
    assert len(tried) == 3 * 2 ** len(source_only(space))
    noise = tried[:, space.names.index("noise")]
    assert sorted(set(noise.tolist())) == [-1, 0]
    assert not tried[0].any()
    both = [p for p, t in enumerate(space.transformations) if t.both]
    assert 0.2 < tried[:, both].abs().max() <= 0.5, "jitter of a clean target, undone"
    flags = undo.candidates(REVERSIBLE, REVERSIBLE, 1, 0)[:, 2:]
    assert {tuple(row) for row in flags.tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_worse_is_beyond_two_standard_errors_of_the_difference() -> None:
    assert undo._is_worse(0.40, 0.55, 100)
    assert not undo._is_worse(0.42, 0.55, 100)
    assert undo._is_worse(0.9, 1.0, 500)


def test_the_density_is_the_mahalanobis_distance() -> None:
    values = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    covariance = np.cov(values.numpy().T, bias=True)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 4 * np.eye(4)
    centred = (values - values.mean(0)).numpy().astype(np.float64)
    wanted = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(shrunk), centred)
    np.testing.assert_allclose(undo.Density.fit(values).implausible(values), wanted, rtol=1e-4)


def test_the_table_is_written_with_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "open_world", lambda run, session: Oracle(space=REVERSIBLE, size=8))
    images, labels = tinted(120)
    np.savez(tmp_path / "tints.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    options: dict[str, Any] = {"images": 10, "train_images": 60, "guesses": 1, "out": str(tmp_path)}
    found = undo.undo(
        Undo(run="run", data=str(tmp_path / "tints.npz"), speed=config.Speed(precision="fp32"), **options)
    )
    assert json.loads(Path(found["path"]).read_text())["corruptions"]["negative"]["true_action"] == 1
    assert Path(found["path"]).with_suffix(".png").stat().st_size > 5_000
