import torch
from conftest import tiny

from iwm.config import Objective
from iwm.model.objectives import objective_of
from iwm.model.world_model import ImageWorldModel, for_tasks


@torch.no_grad()
def test_targets_are_the_teachers_tokens_averaged_over_its_last_layers(images):
    settings = tiny(objective=Objective(target_layers=2))
    model = ImageWorldModel(settings)
    assert torch.equal(model.raw_target(images), model.target_encoder.tokens(images, average=2))
    assert objective_of(settings).output_width == settings.encoder.width
    assert isinstance(for_tasks(settings, 7, (4, 4)).project, torch.nn.Linear)
