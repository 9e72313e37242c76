"""The heads against plain formulas, the seeded tenth, and the training loop."""

import math

import pytest
import torch

from iwm.evaluation import fitting
from iwm.evaluation.classifier import AttentiveHead

CPU = {"device": torch.device("cpu"), "precision": "fp32"}


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


def test_the_tenth_is_a_seeded_tenth_of_every_class():
    labels = torch.cat([torch.zeros(100), torch.ones(40), torch.full((1,), 2), torch.full((2,), 3)]).long()
    rest, tenth = fitting.hold_out(labels, 0)
    assert torch.equal(torch.cat([rest, tenth]).sort().values, torch.arange(143))
    assert torch.bincount(labels[tenth]).tolist() == [10, 4, 0, 1]
    assert torch.equal(fitting.hold_out(labels, 0)[1], tenth)
    assert not torch.equal(fitting.hold_out(labels, 1)[1], tenth)


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
    schedule = fitting.Schedule(epochs=4, search_epochs=2, search_images=150, batch_size=32)
    first, second = (fitting.choose(learner, grid, samples, schedule, seed=0, title="", **CPU) for _ in range(2))
    assert first.choice == {"lr": 3e-2}
    assert [row["lr"] for row in first.tried] == [1e-6, 3e-2]
    twins = zip(first.learner.model.parameters(), second.learner.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in twins)
    logits = fitting.logits_of(first.learner.logits, samples.plain(torch.arange(300)), **CPU)
    assert fitting.accuracy(logits, samples.labels) > 0.9


def test_a_diverging_choice_is_noted_and_not_taken():
    grid = [{"lr": math.nan}, {"lr": 3e-2}]
    schedule = fitting.Schedule(epochs=1, batch_size=32)
    found = fitting.choose(learner, grid, planted(), schedule, seed=0, title="", **CPU)
    assert found.tried[0]["diverged"]
    assert found.choice == {"lr": 3e-2}


def test_every_view_is_shown_and_the_plain_one_is_first():
    samples = fitting.Samples(torch.arange(3)[:, None].expand(3, 50).clone(), torch.zeros(50, dtype=torch.long))
    rows = torch.arange(50)
    seen = torch.stack([samples.batch(rows.numpy(), 0, epoch) for epoch in range(20)])
    assert seen.unique().tolist() == [0, 1, 2]
    assert torch.equal(seen[0], samples.batch(rows.numpy(), 0, 0))
    assert not samples.plain(rows).any()
