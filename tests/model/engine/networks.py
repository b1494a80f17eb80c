"""Networks and images for the tests of the engine."""

import copy

import torch
from torch import nn

import exitlens as xl

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


def check_answers(net, inputs, *policies):
    """The network answers as without a tuning: in a trace, by a policy of its own (half leave at exit 0), and by others."""
    plain = copy.deepcopy(net)
    plain.tuning = xl.Tuning()
    trace, wanted = xl.collect(net, inputs), xl.collect(plain, inputs)
    torch.testing.assert_close(trace.logits, wanted.logits, atol=1e-4, rtol=1e-5)
    assert trace.network == wanted.network
    scores = wanted.logits[:, 0].softmax(1).amax(1).sort().values
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]).item() / 2
    for policy in (xl.Policy((middle, *[2.0] * (net.num_exits - 2)), network=net.identity()), *policies):
        pred, expected = (xl.predict(each, inputs, policy, attention=True) for each in (net, plain))
        assert pred.exits.tolist() == expected.exits.tolist()
        torch.testing.assert_close(pred.probabilities, expected.probabilities, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(pred.attention, expected.attention, atol=1e-4, rtol=1e-5)
