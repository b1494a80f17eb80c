import torch

from exitlens.workflow.training.ema import WeightAverage
from tests.conftest import make_net


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


def test_statistics_are_averaged_and_the_network_gets_its_own_back(net):
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


def test_it_goes_on_from_its_dump(net):
    average = WeightAverage(net, 0.99)
    _fill(net, 1.0)
    average.update()
    other = WeightAverage(make_net(), 0.99)
    other.restore(average.dump())
    assert other.steps == 1
    assert all(torch.equal(value, other.state[name]) for name, value in average.state.items())
