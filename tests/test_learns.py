"""Learning itself: a short run on real photos must beat chance, random initialisation and the position-only model, and
the same check must fail at learning rate 0 and with shuffled actions. `make test-long` trains longer, and both ways."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm import config, run_folder
from iwm.actions.views import make_views
from iwm.data.image_sets import Subset
from iwm.data.loader import load_all
from iwm.data.sources import open_images
from iwm.evaluation.world import mrr
from iwm.run_folder import RunFolder
from iwm.training import loop, step

BANK, IMAGES = 64, 16


SHORT = 24
"""Epochs after which the check holds with room to spare."""
LONG = pytest.param(40, marks=pytest.mark.long)


def learner(out: Path, epochs: int = SHORT, **optim: float) -> config.Config:
    """About fifteen seconds of one core: the 800 training photos at 32 px, patches of 8."""
    base = tiny()
    return replace(
        base,
        data=config.Data(source="sample", image_size=32),
        encoder=replace(base.encoder, patch_size=8, width=64, depth=2, heads=2),
        predictor=replace(base.predictor, width=64, depth=2),
        objective=config.Objective(target_norm="batch", target_layers=2, variance=0.1, covariance=0.004),
        optim=replace(base.optim, epochs=epochs, batch_size=32, lr_batch=32, ema=0.99, **optim),
        run=config.Run(out=str(out), log_every=500, save_every=2000),
    )


def learned(out: Path) -> list[str]:
    """What a run failed to learn; empty when it learned."""
    line = RunFolder(out).metric_lines()[-1]
    model = run_folder.load_model(str(out))
    held_out = open_images("sample", "val")
    pixels, _ = load_all(Subset(held_out, np.arange(IMAGES)), 32)
    result = mrr.measure(model, pixels, BANK)
    random = mrr.measure(step.build(model.settings, torch.device("cpu")).eval(), pixels, BANK)
    print(line["health_loss"], line["position_mean_loss"], result["mrr"], random["mrr"], result["mrr_shuffled"])
    wanted = {
        "loss below the position-only model": line["health_loss"] < 0.9 * line["position_mean_loss"],
        "MRR above three times chance": result["mrr"] > 3 * result["mrr_chance"],
        "MRR above random initialisation": result["mrr"] > random["mrr"] + 0.1,
        "shuffled actions at chance": abs(result["mrr_shuffled"] - result["mrr_chance"]) < 0.03,
    }
    return [what for what, holds in wanted.items() if not holds]


@pytest.mark.parametrize("epochs", [SHORT, LONG])
@pytest.mark.parametrize("kind", [pytest.param("adamw", marks=pytest.mark.long), "muon"])
def test_a_short_run_learns(tmp_path, kind, epochs):
    chosen = learner(tmp_path / "run", epochs)
    assert learned(loop.pretrain(replace(chosen, optim=replace(chosen.optim, kind=kind)))) == []


def test_the_check_fails_at_learning_rate_zero(tmp_path):
    missing = learned(loop.pretrain(learner(tmp_path / "run", 4, lr=0.0, lr_start=0.0, lr_final=0.0)))
    assert {"loss below the position-only model", "MRR above three times chance"} <= set(missing)


@pytest.mark.parametrize("epochs", [SHORT, LONG])
def test_the_check_fails_with_shuffled_actions(tmp_path, monkeypatch: pytest.MonkeyPatch, epochs):
    real = step.make_views

    def shuffled(*args, **more):
        views = real(*args, **more)
        return replace(views, action=views.action.roll(1, dims=0))

    monkeypatch.setattr(step, "make_views", shuffled)
    assert "MRR above three times chance" in learned(loop.pretrain(learner(tmp_path / "run", epochs)))


@torch.no_grad()
def share_of_change(run: Path) -> float:
    """How far a change of colours moves an unseen photo's mean token of the last block, over photos' distance."""
    model = run_folder.load_model(str(run))
    pixels, rows = load_all(open_images("sample", "val"), 32)
    views = make_views(pixels, model.space, model.settings.actions, 1, 0, rows, "cpu")
    one, other = (model.target_encoder.intermediates(part, [2])[0].mean(dim=1) for part in (views.source, views.target))
    return float((one - other).square().sum(dim=1).mean() / torch.cdist(other, other).square().mean())


def test_the_dial_makes_the_last_block_invariant_and_the_predictor_less_sensitive(tmp_path):
    """From equivariant to invariant by `objective.invariance_weight`, the block below the last being predicted."""
    shares, sensitivities = [], []
    for weight in (0.0, 10.0):
        base = learner(tmp_path / f"weight{weight:g}")
        chosen = replace(
            base,
            actions=replace(base.actions, level="jitter"),
            encoder=replace(base.encoder, layer=1),
            objective=replace(base.objective, target_layers=1, invariance_weight=weight, projector_dim=32),
            optim=replace(base.optim, kind="muon", epochs=8, ema=0.98),
        )
        run = loop.pretrain(chosen)
        shares.append(share_of_change(run))
        sensitivities.append(RunFolder(run).metric_lines()[-1]["action_sensitivity"])
    assert shares[1] < 0.6 * shares[0], shares
    assert sensitivities[1] < 0.85 * sensitivities[0], sensitivities
