import torch
from conftest import tiny

from iwm.config import Objective
from iwm.model.objectives import objective_of
from iwm.model.objectives.pixels import patches_of
from iwm.model.world_model import ImageWorldModel, for_tasks, seen_width


def test_patches_are_cut_in_maes_order():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 6, 12)
    for number, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(
            patches[1, number], images[1, :, row : row + 2, column : column + 2].permute(1, 2, 0).flatten()
        )


def test_targets_are_the_normalised_patches_and_heads_see_tokens(images):
    settings = tiny(objective=Objective(kind="pixels"))
    model = ImageWorldModel(settings)
    normalised = model.encoder.normalise(images)
    assert torch.equal(model.raw_target(images), patches_of(normalised, 4))
    assert objective_of(settings).output_width == model.predictor.project.out_features == 48
    assert isinstance(for_tasks(settings, 7, (4, 4)).project, torch.nn.Identity)
    assert (seen_width(settings, predicts=True), seen_width(settings, predicts=False)) == (32, 32)
