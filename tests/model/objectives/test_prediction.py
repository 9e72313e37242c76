from typing import cast

import pytest
import torch
from conftest import tiny

from iwm import config
from iwm.model.objectives import PatchPrediction, objective_of
from iwm.model.objectives.prediction import squared_error


def test_loss_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wanted = ((a.double() - b.double()) ** 2).sum() / 24
    assert squared_error(a, b).item() == pytest.approx(wanted.item())


def test_smooth_l1_is_hubers_with_threshold_1():
    settings = tiny(objective=config.Objective(error="smooth_l1"))
    a, b = 3 * torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    distance = (a.double() - b.double()).abs()
    wanted = torch.where(distance < 1, distance**2 / 2, distance - 0.5).mean()
    objectives = [objective_of(settings), objective_of(tiny())]
    huber, squared = (cast(PatchPrediction, objective).compare(a, b).item() for objective in objectives)
    assert huber == pytest.approx(wanted.item())
    assert squared == pytest.approx(float((distance**2).mean()))
