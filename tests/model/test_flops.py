import pytest
import torch
from conftest import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iwm.model.encoder import Encoder
from iwm.model.flops import (
    block_parameters,
    encoder_flops,
    encoder_parameters,
    patch_count,
    predictor_flops,
    predictor_parameters,
)
from iwm.model.predictor import Predictor
from iwm.model.vit import PlainBlock


def test_encoder_against_counting_its_forward_pass():
    settings = tiny()
    encoder = Encoder(settings.encoder, settings.data.image_size)
    keep = torch.arange(5).expand(2, -1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.tokens(torch.zeros(2, 3, 16, 16), keep)
    assert patch_count(settings) == 16
    assert encoder_flops(settings, 5) == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert encoder_parameters(settings) == sum(p.numel() for p in encoder.parameters())


def test_predictor_against_counting_its_forward_pass():
    settings = tiny()
    predictor = Predictor(settings.predictor, settings.encoder.width, 7, (4, 4))
    context, queries = torch.arange(5).expand(2, -1), torch.arange(3).expand(2, -1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        predictor(torch.zeros(2, 5, 32), torch.zeros(2, 7), context=context, queries=queries)
    assert predictor_flops(settings, 7, 5, 3, 32) == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert predictor_parameters(settings, 7, 32) == sum(p.numel() for p in predictor.parameters())


def test_parameters_of_a_block():
    assert block_parameters(32, 4.0) == sum(p.numel() for p in PlainBlock(32, 2, 4.0).parameters())
