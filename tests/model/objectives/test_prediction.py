import pytest
import torch

from iwm.model.objectives.prediction import squared_error


def test_loss_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wanted = ((a.double() - b.double()) ** 2).sum() / 24
    assert squared_error(a, b).item() == pytest.approx(wanted.item())
