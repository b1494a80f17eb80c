"""Half precision spares depthwise convolutions and attention on CPUs, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.io import read_json
from exitlens.workflow.training.optimizer import use_half_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_depthwise_convolutions_are_exact_to_their_rounded_output(axes):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 4, *[5] * axes, generator=torch.Generator().manual_seed(0))
    with use_half_precision(CPU, True):
        output = conv(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, conv(x).to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(conv(x), output)  # what was rounded before differs
    output.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_other_operations_are_autocast():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    grey, dense = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
    for module, inputs in ((grey, x[:, :1]), (dense, x)):
        with use_half_precision(CPU, True):
            output = module(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(inputs), output)
        with use_half_precision(CPU, False):
            assert module(inputs).dtype == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_exact_to_its_rounded_output(masked):
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=draw, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 1, 7, generator=draw) < 0.7 if masked else None
    with use_half_precision(CPU, True):
        output = F.scaled_dot_product_attention(query, key, value=value, attn_mask=mask)
        halves = F.scaled_dot_product_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    assert output.dtype == halves.dtype == torch.bfloat16
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, mask).to(torch.bfloat16))
    output.float().sum().backward()
    assert value.grad.dtype == torch.float32


def test_exported_code_and_named_arguments_run():
    conv = nn.Conv2d(4, 4, 3, groups=4)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(conv, (x,)).module()
    with use_half_precision(CPU, True):
        assert torch.equal(exported(x), conv(x))
        assert F.conv2d(input=x, weight=conv.weight, groups=4).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(("example", "amp"), [(torch.zeros(8, 6), False), (torch.zeros(8, 1, 12, 12), True)])
@pytest.mark.slow
def test_vectors_are_trained_in_single_precision_by_default(tmp_path, monkeypatch, example, amp):
    monkeypatch.setattr("exitlens.workflow.training.fit.has_fast_bfloat16", lambda device: True)
    net, data = xl.attach("small", 1, 2, example), torch.utils.data.TensorDataset(example, torch.arange(8) % 2)
    xl.fit(net, data, data, epochs=1, batch_size=4, out_dir=tmp_path / "run", progress=False)
    assert read_json(tmp_path / "run" / "settings.json")["settings"]["amp"] is amp
