from dataclasses import replace

import pytest
import torch
from conftest import tiny

from iwm.model.predictor import Predictor
from iwm.runtime.errors import UserError

KINDS = ["none", "sequence", "feature", "adaln"]


def build(kind: str, init: str = "xavier") -> Predictor:
    torch.manual_seed(0)
    settings = replace(tiny().predictor, conditioning=kind, init=init)
    return Predictor(settings, 24, 7, (4, 4)).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_output_a_query_and_any_grid(kind):
    predictor = build(kind)
    context, queries = torch.tensor([[0, 3, 9], [1, 2, 15]]), torch.tensor([[5, 6], [4, 7]])
    out = predictor(torch.randn(2, 3, 24), torch.randn(2, 7), context=context, queries=queries)
    assert out.shape == (2, 2, 24)
    assert predictor(torch.randn(2, 12, 24), torch.randn(2, 7), grid=(3, 4)).shape == (2, 12, 24)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_only_conditioned_predictors_hear_the_action(kind):
    predictor = build(kind)
    predictor.open_gates()
    for block in predictor.blocks:  # an adaln modulation after training is not zero
        if kind == "adaln":
            torch.nn.init.normal_(block.modulation.weight, std=0.1)  # pyright: ignore
    tokens = torch.randn(1, 16, 24)
    still, moved = predictor(tokens, torch.zeros(1, 7)), predictor(tokens, torch.ones(1, 7))
    assert torch.equal(still, moved) == (kind == "none")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_queries_do_not_depend_on_each_others_order(kind):
    predictor = build(kind)
    predictor.open_gates()
    tokens, action, queries = torch.randn(1, 16, 24), torch.randn(1, 7), torch.tensor([[2, 5, 11]])
    out = predictor(tokens, action, queries=queries)
    turned = predictor(tokens, action, queries=queries.flip(1))
    torch.testing.assert_close(out, turned.flip(1))


@torch.no_grad()
def test_context_positions_matter():
    predictor = build("feature")
    tokens, action = torch.randn(1, 2, 24), torch.zeros(1, 7)
    here = predictor(tokens, action, context=torch.tensor([[0, 1]]))
    there = predictor(tokens, action, context=torch.tensor([[1, 0]]))
    assert not torch.allclose(here, there)


@pytest.mark.parametrize("kind", ["sequence", "feature", "adaln"])
def test_the_small_initialisation_lets_the_action_through(kind):
    """At small widths trunc-normal 0.02 shrinks the action's signal several-fold a layer; He's rule does not."""
    signal = {}
    for init in ("xavier", "trunc_normal"):
        predictor = build(kind, init)
        if kind == "adaln":
            signal[init] = float(predictor.get_submodule("condition")(torch.eye(7)).detach().std())
            continue
        tokens = torch.randn(4, 16, 24)
        change = predictor(tokens, torch.ones(4, 7)) - predictor(tokens, torch.zeros(4, 7))
        signal[init] = float(change.detach().std())
    assert signal["xavier"] > 4 * signal["trunc_normal"]


def test_a_random_adaln_control_sees_its_context_only_with_open_gates():
    predictor = build("adaln")
    action = torch.zeros(1, 7)
    one, two = torch.randn(1, 16, 24), torch.randn(1, 16, 24)
    assert torch.equal(predictor(one, action), predictor(two, action))
    predictor.open_gates()
    assert not torch.allclose(predictor(one, action), predictor(two, action))


def test_reset_draws_anew_and_rescales():
    predictor = build("feature")
    before = {name: value.clone() for name, value in predictor.state_dict().items()}
    predictor.reset()
    assert not torch.equal(before["embed.weight"], predictor.embed.weight)
    last, first = predictor.blocks[-1], predictor.blocks[0]
    assert last.attn.proj.weight.std() < 0.8 * first.attn.proj.weight.std()  # pyright: ignore


def test_width_must_fit_the_positions():
    with pytest.raises(UserError, match="multiple of 4"):
        Predictor(replace(tiny().predictor, width=30), 24, 7, (4, 4))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_task_tokens_take_part_and_are_not_returned(kind):
    predictor = build(kind)
    predictor.open_gates()
    tokens, action, task = torch.randn(2, 16, 24), torch.zeros(2, 7), torch.randn(2, 1, 32)
    plain, told = predictor(tokens, action), predictor(tokens, action, task=task)
    assert told.shape == plain.shape
    assert not torch.allclose(told, plain)
    torch.testing.assert_close(predictor(tokens, action, task=torch.empty(2, 0, 32)), plain)
    # Every image hears its own.
    turned = predictor(tokens, action, task=task.flip(0))
    alone = predictor(tokens[:1], action[:1], task=task[1:])
    torch.testing.assert_close(turned[:1], alone)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_intermediates_are_the_queries_after_a_block(kind):
    predictor = build(kind)
    predictor.open_gates()
    seen = []
    for block in predictor.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens, action = torch.randn(2, 12, 24), torch.randn(2, 7)
    first, last = predictor.intermediates(tokens, action, [1, 2], grid=(3, 4))
    torch.testing.assert_close(first, torch.nn.functional.layer_norm(seen[0][:, :12], (32,)))
    torch.testing.assert_close(last, predictor.norm(seen[1][:, :12]))
    assert torch.equal(predictor.project(last), predictor(tokens, action, grid=(3, 4)))
