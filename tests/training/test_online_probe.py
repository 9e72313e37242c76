"""The accuracy drawn while training: a ridge regression's, on images that it was not fitted to."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures_file, tiny, with_run
from picture_files import noise, write
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from iwm.data.image_sets import ImageSet
from iwm.data.sources import open_images
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder
from iwm.runtime.algebra import ridge
from iwm.runtime.devices import Session
from iwm.training import online_probe
from iwm.training.callbacks import State
from iwm.training.online_probe import OnlineProbe, ridge_accuracy
from iwm.training.step import Training


def clouds(seed: int, count: int, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes of 70, 20 and 10 %, in correlated features of different scales that lie off zero."""
    fixed = np.random.default_rng(99)
    centres, mixing = fixed.normal(0, 0.3, (3, width)), fixed.normal(size=(width, width)) * np.logspace(1, -2, width)
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, count, p=[0.7, 0.2, 0.1])
    values = (centres[labels] + generator.normal(size=(count, width))) @ mixing + 5
    return torch.from_numpy(values).float(), torch.from_numpy(labels)


def brute_force(train: torch.Tensor, labels: torch.Tensor, val: torch.Tensor) -> tuple[float, np.ndarray]:
    """The strength that scikit-learn's ridge gets most images right with, each left out in turn; its answers on val."""
    mean, std = train.double().mean(0), train.double().std(0).clamp_min(1e-6)
    inputs, held = ((part.double() - mean).div(std).numpy() for part in (train, val))
    onehot, kept = np.eye(int(labels.max()) + 1)[labels.numpy()], {}
    mean_curvature = np.square(inputs).sum() / inputs.shape[1]  # times the images, as alpha is
    for strength in (1.0, 0.1, 0.01, 0.001):
        model = Ridge(alpha=strength * mean_curvature)
        answers = np.asarray(cross_val_predict(model, inputs, onehot, cv=LeaveOneOut())).argmax(1)
        kept[strength] = np.mean(answers == labels.numpy())
    best = max(kept, key=lambda strength: kept[strength])
    return best, Ridge(alpha=best * mean_curvature).fit(inputs, onehot).predict(held).argmax(1)


def test_ridge_accuracy_is_that_of_scikit_learn():
    chosen = set()
    for seed, count in itertools.product(range(4), [20, 60]):  # fewer images than the 40 features, and more
        (train, labels), (val, truth) = clouds(seed, count), clouds(100 + seed, 4000)
        strength, answers = brute_force(train, labels, val)
        wanted = (answers == truth.numpy()).mean()
        assert ridge_accuracy(train, labels, val, truth) == pytest.approx(wanted, abs=1e-9)
        assert 0.5 < wanted < 0.95, "something to get wrong"
        chosen.add(strength)
    assert len(chosen) > 1, "a search that always ends alike is none"


def test_few_images_of_many_features_are_fitted_with_a_strong_penalty():
    """What an encoder that learns late looks like: a weak penalty fits the noise and hides it."""
    fixed = torch.Generator().manual_seed(0)
    centres = 0.25 * torch.randn(2, 150, generator=fixed)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 2
        return centres[labels] + torch.randn(count, 150, generator=fixed), labels

    (train, labels), (val, truth) = drawn(160), drawn(2000)
    onehot = torch.nn.functional.one_hot(labels).double()
    mean = train.double().mean(0)
    weight, bias = ridge(train.double() - mean, onehot, l2=1e-3)
    weak = float((((val.double() - mean) @ weight + bias).argmax(1) == truth).double().mean())
    assert ridge_accuracy(train, labels, val, truth) > weak + 0.1


def test_a_feature_that_never_varies_and_scales_do_not_matter():
    (train, labels), (val, truth) = clouds(2, 300), clouds(102, 1000)
    wanted = ridge_accuracy(train, labels, val, truth)
    scale = torch.logspace(-2, 2, train.shape[1])
    assert ridge_accuracy(train * scale + 3, labels, val * scale + 3, truth) == pytest.approx(wanted, abs=2e-3)
    assert wanted > (truth == 0).double().mean() + 0.03, "more than the most frequent class"
    constant = [torch.cat([part, torch.full((len(part), 1), 7.0)], dim=1) for part in (train, val)]
    assert ridge_accuracy(constant[0], labels, constant[1], truth) == pytest.approx(wanted, abs=5e-3)


def test_a_class_that_was_never_shown_is_always_wrong():
    train, val = torch.tensor([[-1.0], [1.0]] * 10), torch.tensor([[-1.0], [1.0], [5.0], [9.0]])
    found = ridge_accuracy(train, torch.tensor([0, 1] * 10), val, torch.tensor([0, 1, 2, 3]))
    assert found == 0.5


# ---- the probe -----------------------------------------------------------------------------------------------------


def opened(tmp_path: Path, **how: bool) -> ImageSet:
    return open_images(str(pictures_file(tmp_path / "pictures.npz", count=120, **how)))


def test_there_is_none_without_labels_or_with_too_few_images(tmp_path):
    assert OnlineProbe.for_run(opened(tmp_path), tiny()) is None
    few = str(pictures_file(tmp_path / "few.npz", count=99, labelled=True))
    assert OnlineProbe.for_run(open_images(few), tiny()) is None
    enough = str(pictures_file(tmp_path / "enough.npz", count=100, labelled=True))
    assert OnlineProbe.for_run(open_images(enough), tiny())


def test_two_thirds_to_fit_and_a_third_to_ask_drawn_by_the_seed(tmp_path):
    source = opened(tmp_path, labelled=True)
    probe, again = (OnlineProbe.for_run(source, tiny()) for _ in range(2))
    other = OnlineProbe.for_run(source, with_run(tiny(), seed=1))
    assert probe
    assert again
    assert other
    assert (len(probe.images), probe.train) == (120, 80)
    assert torch.equal(probe.images, again.images)
    assert torch.equal(probe.labels, again.labels)
    assert not torch.equal(probe.images, other.images)
    assert len(probe.images.flatten(1).unique(dim=0)) == 120, "each image once: none is fitted to and asked"


def test_of_many_images_a_fixed_number_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(online_probe, "TRAIN", 60)
    monkeypatch.setattr(online_probe, "VAL", 40)
    probe = OnlineProbe.for_run(opened(tmp_path, labelled=True), tiny())
    assert probe
    assert (len(probe.images), len(probe.labels), probe.train) == (100, 100, 60)


def test_labels_stay_with_their_images_where_some_are_broken(tmp_path):
    """Class folders of which every image has its class's colour, and of each the first are broken."""
    colours = {"a": (250, 0, 0), "b": (0, 250, 0), "c": (0, 0, 250)}
    for name, colour in colours.items():
        noise(tmp_path / name, 12, broken=tuple(range(12)))
        for index in range(40):
            write(tmp_path / name / f"whole-{index}.png", colour)
    probe = OnlineProbe.for_run(open_images(str(tmp_path), "all"), tiny())
    assert probe
    assert len(probe.images) == len(probe.labels) == 120
    assert torch.equal(probe.images.float().mean(dim=(2, 3)).argmax(1), probe.labels)


def test_the_encoder_that_is_asked_is_the_one_used_afterwards(tmp_path, monkeypatch):
    probe = OnlineProbe.for_run(opened(tmp_path, labelled=True), tiny())
    assert probe
    torch.manual_seed(0)
    model = ImageWorldModel(tiny()).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
        features, students = (model.encode(probe.images, student=who).pooled for who in (False, True))
    seen = []

    def accuracy(train: torch.Tensor, labels: torch.Tensor, val: torch.Tensor, truth: torch.Tensor) -> float:
        seen.append((train, labels, val, truth))
        return ridge_accuracy(train, labels, val, truth)

    monkeypatch.setattr(online_probe, "ridge_accuracy", accuracy)
    found = probe.accuracy(model)
    ((train, labels, val, truth),) = seen
    torch.testing.assert_close(torch.cat([train, val]), features, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(torch.cat([train, val]), students, atol=1e-2)
    assert (len(train), len(val)) == (80, 40)
    assert torch.equal(torch.cat([labels, truth]), probe.labels)
    assert found == ridge_accuracy(features[:80], probe.labels[:80], features[80:], probe.labels[80:])


def test_images_are_encoded_in_parts_that_change_nothing(tmp_path, monkeypatch):
    source = str(pictures_file(tmp_path / "pictures.npz", count=300, labelled=True))
    probe = OnlineProbe.for_run(open_images(source), tiny())
    assert probe
    torch.manual_seed(0)
    model = ImageWorldModel(tiny()).eval()
    real, counts = ImageWorldModel.encode, []

    def counting(self, images, **named):
        counts.append(len(images))
        return real(self, images, **named)

    monkeypatch.setattr(ImageWorldModel, "encode", counting)
    found = probe.accuracy(model)
    assert sum(counts) == 300
    assert max(counts) <= 250
    with torch.no_grad():
        features = real(model, probe.images).pooled
    assert found == ridge_accuracy(features[:200], probe.labels[:200], features[200:], probe.labels[200:])


def test_features_that_do_not_vary_at_all_know_nothing():
    labels = torch.tensor([0, 1, 1, 1] * 5)
    same = torch.full((20, 3), 4.0)
    assert ridge_accuracy(same, labels, same, labels) == 0.75, "the most frequent class"


def test_a_line_says_how_far_the_accuracy_is_off(tmp_path, monkeypatch):
    source = opened(tmp_path, labelled=True)
    probe = OnlineProbe.for_run(source, tiny())
    assert probe
    monkeypatch.setattr(probe, "accuracy", lambda model: 0.2)
    line: dict[str, float] = {}
    with Session.open(tiny().speed) as session:
        probe.on_log(State(RunFolder(tmp_path), Training.start(tiny(), 1, session), source, 1, 1), line)
    assert line == {"probe_top1": 0.2, "probe_top1_standard_error": pytest.approx((0.2 * 0.8 / 40) ** 0.5)}
