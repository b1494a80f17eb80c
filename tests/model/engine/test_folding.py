import copy

import torch
from torch import nn

from exitlens.model.engine.folding import can_fold, fold
from tests.conftest import TinyNet, make_net
from tests.model.engine.networks import IMAGES, with_statistics


def test_folding_takes_every_batch_normalisation_that_follows_a_convolution():
    stage = with_statistics(make_net()).stage(0)
    body = copy.deepcopy(stage.evaluation).eval()
    x = IMAGES[:4]
    expected = body(x)[0]
    fold(body)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    torch.testing.assert_close(body(x)[0], expected, atol=1e-5, rtol=1e-4)


class Shared(nn.Module):
    """One convolution used twice, a normalisation whose input is used twice, one without statistics, one before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.first(x))
        y = self.n(self.a(x))
        z = self.b(y)
        x = self.free(self.c(z + self.m(z)))
        return self.fc(x.mean((2, 3)))


def test_folding_leaves_what_it_cannot_fold():
    torch.manual_seed(0)
    body = torch.fx.symbolic_trace(Shared().eval())
    expected = body(IMAGES[:4])
    fold(body)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in body.modules()) == 4
    torch.testing.assert_close(body(IMAGES[:4]), expected)


def test_convolutions_with_hooks_are_not_folded():
    body = torch.fx.symbolic_trace(TinyNet().eval())
    assert can_fold(body)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    assert not can_fold(body)
    fold(body)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in body.modules()) == 2
