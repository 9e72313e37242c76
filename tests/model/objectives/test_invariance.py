"""The invariance term of the last block: VICReg's formula, where its gradients go, and what refuses it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.actions.views import make_views
from iwm.model.masks import sample_masks
from iwm.model.objectives.invariance import vicreg
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError
from iwm.training.validation import validate

DIAL = config.Objective(target_norm="batch", invariance_weight=2.0, projector_dim=24)


def settings_of(**encoder: object) -> config.Config:
    return tiny(encoder=replace(tiny().encoder, depth=3, **encoder), objective=DIAL)  # pyright: ignore[reportArgumentType]


def forward(settings: config.Config, images: torch.Tensor, step: int = 0):
    torch.manual_seed(0)
    model = ImageWorldModel(settings).train()
    indices = np.arange(len(images))
    views = make_views(images, model.space, settings.actions, 0, step, indices, "cpu")
    masks = sample_masks(settings.masks, model.grid, 0, step, indices, "cpu")
    return model, views, masks, model(views, masks)


def test_the_term_is_vicregs_over_25():
    """The published loss, 25 mse + 25 (v + v') / 2 + c + c', written in NumPy and float64."""
    one, other = torch.randn(20, 6) * 0.7 + 3, torch.randn(20, 6) * torch.linspace(0.1, 2, 6)

    def spread(z: np.ndarray) -> tuple[float, float]:
        cov = np.cov(z.T)
        v = np.maximum(0, 1 - np.sqrt(np.diag(cov) + 1e-4)).mean()
        return v, (cov[~np.eye(6, dtype=bool)] ** 2).sum() / 6

    x, y = one.double().numpy(), other.double().numpy()
    (v1, c1), (v2, c2) = spread(x), spread(y)
    wanted = 25 * ((x - y) ** 2).mean() + 25 * (v1 + v2) / 2 + c1 + c2
    assert 25 * vicreg(one, other).item() == pytest.approx(wanted, rel=1e-5)


def test_it_compares_source_and_target_at_the_patches_that_are_seen(images):
    settings = settings_of(layer=2)
    model, views, masks, output = forward(settings, images)
    projector = model.get_submodule("invariance")
    pooled = [
        model.encoder.tokens_and_last(part, masks.context)[1].mean(dim=1) for part in (views.source, views.target)
    ]
    assert output.invariance is not None
    torch.testing.assert_close(output.invariance, vicreg(*map(projector, pooled)))
    torch.testing.assert_close(output.loss, output.latent + 2 * output.invariance)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_block_learns(images, layer):
    model, _, _, output = forward(settings_of(layer=layer), images)
    output.loss.backward()
    for name, parameter in [*model.encoder.named_parameters(), *model.get_submodule("invariance").named_parameters()]:
        if not name.endswith("pos_embed"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_without_the_term_the_blocks_behind_stay_as_drawn(images):
    settings = settings_of(layer=2)
    settings = replace(settings, objective=replace(DIAL, invariance_weight=0.0))
    model, _, _, output = forward(settings, images)
    output.loss.backward()
    trained = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("blocks.2.", "norm.")) for name in trained)
    assert {name for name, p in model.encoder.named_parameters() if p.grad is not None} == trained


def test_context_and_targets_are_the_middle_blocks(images):
    """The prediction is the one of a model without the term, to the last bit of what it compares."""
    with_term, without = settings_of(layer=2), settings_of(layer=2)
    without = replace(without, objective=replace(DIAL, invariance_weight=0.0))
    (_, _, _, one), (_, _, _, other) = (forward(settings, images) for settings in (with_term, without))
    torch.testing.assert_close(one.latent, other.latent)
    torch.testing.assert_close(one.target, other.target)
    assert other.invariance is None
    assert one.loss > other.loss


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"encoder": replace(tiny().encoder, train="none")}, "encoder.train none no block at all"),
        ({"optim": replace(tiny().optim, batch_size=4, accumulate=4)}, "at least twice optim.accumulate"),
        ({"actions": config.Actions(level="jitter", jitter_probability=0.0)}, "these are the same"),
        ({"objective": config.Objective(kind="joint", invariance_weight=1.0)}, "objective.kind joint is none"),
        ({"objective": config.Objective(invariance_weight=-1.0)}, "objective.invariance_weight is -1.0"),
        ({"encoder": replace(tiny().encoder, layer=5)}, "no layer 5 in an encoder of 2 blocks"),
    ],
)
def test_what_makes_no_sense_with_it_is_refused(groups, said):
    if "objective" in groups:
        groups = {**groups, "masks": config.Masks(sampler="none", predict="all")}
    with pytest.raises(UserError, match=said):
        validate(tiny(**{"objective": DIAL, **groups}))
