import pytest
from torch import nn

from benchmarks.processes.train import make_net, make_set


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_networks_without_batch_norm(name):
    net = make_net(name, False, 64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_the_data_show_their_class():
    data = make_set(20, 40)
    assert data.images[7].float().mean((0, 1))[28:32].min() > data.images[7].float().mean((0, 1))[:28].max()
