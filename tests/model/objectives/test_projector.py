import torch

from iwm.model.objectives.projector import mlp


def test_layers_of_a_projector_with_and_without_a_last_norm():
    names = [type(layer).__name__ for layer in mlp([8, 16, 16, 4], last_norm=True)]
    assert names == ["Linear", "BatchNorm", "ReLU"] * 2 + ["Linear", "BatchNorm"]
    plain = mlp([8, 16, 4], last_norm=False)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "BatchNorm", "ReLU", "Linear"]


def test_its_batch_norms_keep_no_statistics():
    projector, values = mlp([8, 16, 4], last_norm=False), torch.randn(12, 8)
    assert not list(projector.buffers())
    torch.testing.assert_close(projector.train()(values), projector.eval()(values))
