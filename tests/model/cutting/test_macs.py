import torch
from torch import nn

from exitlens.model.cutting.macs import count_macs, count_node_macs
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet

A, B, C = 8 * 8 * 6 * 27, 4 * 4 * 8 * 54, 4 * 4 * 10 * 72  # of the convolutions of TinyNet at 16x16


def test_multiply_accumulates_by_hand():
    backbone, x = TinyNet().eval(), torch.zeros(1, 3, 16, 16)
    macs, out = count_macs(backbone, x)
    assert macs == A + B + C + 40
    assert out.shape == (1, 4)
    assert not out.requires_grad
    assert count_macs(backbone, x.repeat(3, 1, 1, 1))[0] == 3 * macs


def test_by_node():
    traced = trace(TinyNet(), False, torch.zeros(1, 3, 16, 16))
    macs = count_node_macs(traced.runnable(), traced.example)
    assert {n.name: count for n, count in macs.items() if count} == {"a_0": A, "b_0": B, "c_0": C, "fc": 40}


def test_fused_kernels_are_counted_and_allowed_again():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    macs, _ = count_macs(layer, torch.zeros(1, 10, 16))
    assert macs >= 10 * 16 * (4 * 16 + 2 * 24)  # four projections and two layers
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
    lstm, steps = nn.LSTM(5, 6, batch_first=True).eval(), 7
    assert count_macs(lstm, torch.zeros(1, steps, 5))[0] == steps * 4 * 6 * (5 + 6)
