"""The heads against plain formulas, the seeded tenth, and the training loop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target

from iwm.evaluation.tasks import fitting
from iwm.evaluation.tasks.classifier import AttentiveHead
from iwm.runtime.devices import CPU
from iwm.runtime.errors import UserError
from iwm.runtime.randomness import permutation
from iwm.verbs.shared import Schedule


def test_attentive_head_against_a_plain_formula():
    torch.manual_seed(0)
    head = AttentiveHead(64, 7).double()
    tokens = torch.randn(3, 10, 64, dtype=torch.float64)
    assert head.heads == 2

    def norm(x, layer):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
        return x * layer.weight + layer.bias

    z = norm(tokens, head.norm1)
    query = head.query[0, 0] @ head.q.weight.T + head.q.bias
    key_value = z @ head.kv.weight.T + head.kv.bias
    key, value = key_value[..., :64], key_value[..., 64:]
    attended = []
    for number in range(2):
        part = slice(32 * number, 32 * number + 32)
        weights = (key[..., part] @ query[part] / math.sqrt(32)).softmax(-1)
        attended.append((weights[..., None] * value[..., part]).sum(1))
    pooled = head.query[0] + torch.cat(attended, dim=-1)
    pooled = pooled + head.mlp(norm(pooled, head.norm2))
    torch.testing.assert_close(head(tokens), pooled @ head.linear.weight.T + head.linear.bias)


def test_attentive_head_has_as_many_parameters_as_it_says():
    d, c = 96, 10
    assert sum(p.numel() for p in AttentiveHead(d, c).parameters()) == 11 * d * d + 13 * d + d * c + c


def test_scores_of_known_logits():
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]])
    found = fitting.scores(logits, torch.tensor([0, 0, 2, 2]))
    assert found["top1"] == 0.75
    assert found["balanced_top1"] == 0.75
    assert found["top5"] == 1.0
    assert found["top5_is"] == "top-3"
    assert found["confusion"] == [[2, 0, 0], [0, 0, 0], [0, 1, 1]]
    found = fitting.scores(torch.eye(8), torch.arange(8).roll(1))
    assert found["top1"] == 0.0
    assert found["top5_is"] == "top-5"


def test_the_learning_rate_rises_then_falls_to_nothing():
    factors = [fitting.factor_at(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1.0
    assert factors[-1] < 1e-3
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def learner(choice):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    return fitting.Learner(model, lambda x: model(x.float()), fitting.decay_groups(model, choice["lr"], 0.05))


def planted(count=300):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (count,), generator=generator)
    values = torch.randn(2, count, 5, generator=generator) + 3 * torch.eye(5)[labels]
    return fitting.Samples(values, labels)


def test_choosing_takes_what_learns_and_repeats_bit_for_bit():
    samples, grid = planted(), [{"lr": 1e-6}, {"lr": 3e-2}]
    schedule = Schedule(epochs=4, search_epochs=2, search_images=150, batch_size=32)
    first, second = (fitting.choose(learner, grid, samples, schedule, seed=0, title="", session=CPU) for _ in range(2))
    assert first.choice == {"lr": 3e-2}
    assert [row["lr"] for row in first.tried] == [1e-6, 3e-2]
    twins = zip(first.learner.model.parameters(), second.learner.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in twins)
    logits = fitting.logits_of(first.learner.logits, samples.plain(torch.arange(300)), CPU)
    assert fitting.accuracy(logits, samples.labels) > 0.9


def test_a_diverging_choice_is_noted_and_not_taken():
    grid = [{"lr": math.nan}, {"lr": 3e-2}]
    schedule = Schedule(epochs=1, batch_size=32)
    found = fitting.choose(learner, grid, planted(), schedule, seed=0, title="", session=CPU)
    assert found.tried[0]["diverged"]
    assert found.choice == {"lr": 3e-2}


def test_every_view_is_shown_and_the_plain_one_is_first():
    samples = fitting.Samples(torch.arange(3)[:, None].expand(3, 50).clone(), torch.zeros(50, dtype=torch.long))
    rows = torch.arange(50)
    seen = torch.stack([samples.batch(rows.numpy(), 0, epoch)[0] for epoch in range(20)])
    assert seen.unique().tolist() == [0, 1, 2]
    assert torch.equal(seen[0], samples.batch(rows.numpy(), 0, 0)[0])
    assert not samples.plain(rows).any()


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_is_with_the_batch_in_reverse_by_the_share_it_says(alphas):
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    schedule = Schedule(**alphas)
    shares = []
    for step in range(8):
        values, share = fitting.mixed(images, schedule, 0, step)
        again, _ = fitting.mixed(images, schedule, 0, step)
        assert torch.equal(values, again)
        own, other = images.float() / 255, images.flip(0).float() / 255
        if "mixup" in alphas:
            torch.testing.assert_close(values, share * own + (1 - share) * other)
        else:
            pasted = (values != own).any(1)[0]  # the same box in every image
            assert torch.equal(values, torch.where(pasted, other, own))
            assert share == pytest.approx(1 - float(pasted.float().mean()), abs=1e-6)
        shares.append(share)
    assert len(set(shares)) > 3


def test_training_on_mixed_pictures_has_the_gradient_of_timms_soft_targets():
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    model = torch.nn.Linear(48, 3)
    twin = copy.deepcopy(model)
    schedule = Schedule(epochs=1, batch_size=4, mixup=0.8, smoothing=0.1, clip=0.0)
    made = fitting.Learner(model, lambda x: model(x.flatten(1)), fitting.decay_groups(model, 0.01, 0.0))
    fitting.fit(
        made, fitting.Samples(images[None], labels), torch.arange(4), schedule, 1, seed=0, title="", session=CPU
    )
    order = torch.from_numpy(permutation(0, "classifier order", 0, 4))
    values, share = fitting.mixed(images[order], schedule, 0, 0)
    assert 0.01 < share < 0.99
    F.cross_entropy(twin(values.flatten(1)), mixup_target(labels[order], 3, share, 0.1)).backward()
    torch.testing.assert_close(model.weight.grad, twin.weight.grad)


def test_averaged_weights_against_a_loop():
    made = learner({"lr": 3e-2})
    samples, rows = planted(96), torch.arange(96)
    weights = []
    watched = fitting.Learner(made.model, lambda x: _note(weights, made.model, x), made.groups)
    schedule = Schedule(batch_size=32, ema=0.9)
    fitting.fit(watched, samples, rows, schedule, 2, seed=0, title="", session=CPU)
    plain = learner({"lr": 3e-2})
    fitting.fit(plain, samples, rows, Schedule(batch_size=32), 2, seed=0, title="", session=CPU)
    # What the model was before each of six steps, and, from the twin without averaging, after the last.
    trail = [*weights[1:], plain.model.get_parameter("weight").detach()]
    average = weights[0]
    for step, weight in enumerate(trail):
        decay = min(0.9, (step + 1) / (step + 10))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(made.model.get_parameter("weight").detach(), average)


def _note(weights, model, inputs):
    weights.append(model.weight.detach().clone())
    return model(inputs.float())


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"mixup": -1.0}, {"smoothing": 1.0}, {"ema": 1.5}, {"batch_size": 0}])
def test_schedules_that_make_no_sense(wrong):
    with pytest.raises(UserError, match="give"):
        Schedule(**wrong)
