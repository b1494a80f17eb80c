"""Networks and images for the tests of the engine."""

import torch
from torch import nn

IMAGES = torch.randn(70, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def with_statistics(net):
    """Return the network with batch normalisation that does something, so that folding it shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net
