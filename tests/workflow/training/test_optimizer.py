import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.functional.schedules import one_cycle_rate
from exitlens.model.backbones.small import SmallResNet
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.optimizer import (
    WeightAverage,
    apply_gradients,
    group_parameters,
    load_slots,
    make_optimizer,
    number_blocks,
)
from tests.conftest import make_net
from tests.texts import make_text_net


def make_settings(**values):
    return TrainingSettings(**{"learning_rate": 0.01, "weight_decay": 0.1} | values)


@pytest.fixture
def resnet():
    return xl.attach(SmallResNet(), ["layer1", "layer2"], 10, torch.zeros(1, 3, 32, 32))


def count(net):
    return len(list(net.parameters()))


def test_equal_parameters_form_a_group_in_the_networks_order(resnet):
    (group,) = group_parameters(resnet, make_settings())
    assert [id(p) for p in group["params"]] == [id(p) for p in resnet.parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)


def test_heads_have_a_rate_of_their_own_and_vectors_no_decay(resnet):
    groups = group_parameters(resnet, make_settings(head_learning_rate=0.1, recipe="pretrained"))
    assert {(g["peak"], g["weight_decay"]) for g in groups} == {(0.01, 0.1), (0.01, 0.0), (0.1, 0.1), (0.1, 0.0)}
    heads = {id(p) for p in resnet.heads.parameters()}
    for group in groups:
        assert all((id(p) in heads) == (group["peak"] == 0.1) for p in group["params"])
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])
    assert sum(len(g["params"]) for g in groups) == count(resnet)


def test_layer_decay_slows_early_blocks(resnet):
    groups = group_parameters(resnet, make_settings(layer_decay=0.5, head_learning_rate=1.0))
    peaks = {id(p): g["peak"] for g in groups for p in g["params"]}
    names = {"stem.0": 6, "layer1.0.conv1": 5, "layer2.0.conv1": 4, "layer3.0.shortcut.1": 3, "layer4.2.conv2": 0}
    body = {name.split("body.")[-1]: p for name, p in resnet.stages.named_parameters()}
    for name, back in names.items():
        assert peaks[id(body[f"{name}.weight"])] == 0.01 * 0.5**back
    assert {id(p) for p in resnet.heads.parameters()} == {i for i, peak in peaks.items() if peak == 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("final", ["head", "keep"])
def test_blocks_of_texts(final):
    net = make_text_net(final)
    depths = number_blocks(net)
    assert sorted(set(depths.values())) == [0, 1, 2, 3]
    bert = net.stage(0).body.get_submodule("bert.embeddings.word_embeddings")
    assert depths[id(bert.weight)] == 0
    trained_as_heads = count(net) - len(depths)
    assert trained_as_heads == sum(len(list(h.parameters())) for h in net.heads[:2]) + (3 if final == "head" else 2)


def test_layer_decay_needs_blocks():
    with pytest.raises(xl.errors.InputError, match="without blocks named by a number"):
        group_parameters(make_net(), make_settings(layer_decay=0.5))
    frozen = group_parameters(make_net(), make_settings(layer_decay=0.5, freeze_backbone=True, head_learning_rate=0.3))
    assert [group["peak"] for group in frozen] == [0.3]


def test_blocks_are_counted_in_the_order_of_execution():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3))
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            for i in (2, 0, 1):
                x = self.layer[i](x)
            return self.head(x.mean((2, 3)))

    net = xl.attach(Crossed(), ["layer.2"], 4, torch.zeros(1, 3, 8, 8))
    depths = number_blocks(net)
    stages = dict(net.stages.named_parameters())
    names = ("0.body.layer.2.0.weight", "1.body.layer.0.0.bias", "1.body.layer.1.0.bias")
    assert [depths[id(stages[name])] for name in names] == [1, 2, 3]


@pytest.mark.parametrize("layout", ["parameter", "gradient", "gaps"])
def test_the_optimiser_is_adamw_for_any_memory_layout(layout):
    """The fused kernel ignores strides and would write into gaps; the oracle is PyTorch's loop, which respects strides."""
    whole = torch.randn(4, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    gaps, start = whole[..., 1::2].clone(), whole[..., ::2] if layout == "gaps" else whole[..., ::2].clone()
    actual, expected = nn.Parameter(start), nn.Parameter(start.clone())
    if layout == "parameter":
        actual.data = actual.data.to(memory_format=torch.channels_last)
    optimizer = make_optimizer([{"params": [actual, nn.Parameter(torch.ones(2))], "weight_decay": 0.01}])
    oracle = torch.optim.AdamW([expected], lr=0.1, weight_decay=0.01, foreach=False)
    assert optimizer.defaults["fused"] == (layout != "gaps")
    for progress in (0.0, 0.5):
        expected.grad = torch.cos(expected.detach())
        other_format = torch.contiguous_format if layout == "parameter" else torch.channels_last
        actual.grad = expected.grad.clone(memory_format=other_format)
        oracle.param_groups[0]["lr"] = one_cycle_rate(progress, 0.1)
        apply_gradients(optimizer, progress, TrainingSettings(learning_rate=0.1))
        oracle.step()
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(whole[..., 1::2], gaps)


def test_the_count_of_steps_is_not_rounded_to_the_parameter():
    scale = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    optimizer = make_optimizer([{"params": [scale]}])
    slots = {"optimizer.0.step": torch.tensor(301.0)}
    slots |= {f"optimizer.0.{name}": torch.tensor(1.0) for name in ("exp_avg", "exp_avg_sq")}
    load_slots(optimizer, slots, "optimizer")
    assert optimizer.state[scale]["step"] == 301  # bfloat16 has 300 and 302
    assert optimizer.state[scale]["exp_avg"].dtype == torch.bfloat16


def _fill(net, value):
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)


def test_the_average_by_hand(net):
    _fill(net, 0.0)
    average = WeightAverage(net, 0.2)
    _fill(net, 1.0)
    average.update()  # the rate of the first step: 1 - min(0.2, 2 / 11)
    name = next(name for name, value in average.state.items() if value.is_floating_point())
    torch.testing.assert_close(average.state[name], torch.full_like(average.state[name], 9 / 11))
    _fill(net, 2.0)
    average.update()
    torch.testing.assert_close(average.state[name], torch.full_like(average.state[name], 0.2 * 9 / 11 + 0.8 * 2))
    counts = [value for value in average.state.values() if not value.is_floating_point()]
    assert counts
    assert all(value == 2 for value in counts)


def test_averages_include_statistics_and_are_undone(net):
    average = WeightAverage(net, 0.9)
    _fill(net, 3.0)
    average.update()
    assert any("running_mean" in name for name in average.state)
    before = net.cached_fingerprint()
    with average.applied():
        for name, value in average.state.items():
            assert torch.equal(net.state_dict()[name], value)
        assert net.cached_fingerprint() != before
    assert all(bool((value == 3).all()) for value in net.state_dict().values())
    assert net.cached_fingerprint() == before
