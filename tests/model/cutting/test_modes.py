import logging
from contextlib import suppress

import pytest
import torch
from torch import nn

from exitlens.model.cutting.modes import fill_zero_parameters, mute, preserve_state
from tests.conftest import TinyNet
from tests.model.kinds import make_network


def be_careless(net, x):
    """Count, replace a buffer, write to another and leave things behind."""
    net.calls += 1
    net.seen = net.seen + 1
    net.left, net.late = x, nn.Parameter(torch.ones(1))
    return TinyNet.forward(net, x)


@pytest.mark.parametrize("fails", [False, True])
def test_state_is_given_back(fails):
    backbone = make_network(be_careless, TinyNet, calls=0, seen=torch.zeros(())).train()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    seen, parameters = backbone.seen, list(backbone.parameters())
    with suppress(ZeroDivisionError), preserve_state(backbone):
        backbone(torch.randn(4, 3, 16, 16))
        assert backbone.a[1].num_batches_tracked == 1
        if fails:
            raise ZeroDivisionError
    assert backbone.calls == 0
    assert backbone.seen is seen
    assert not hasattr(backbone, "left")
    assert all(a is b for a, b in zip(backbone.parameters(), parameters, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_zero_parameters_are_filled_for_a_while(backbone):
    nn.init.zeros_(backbone.fc.weight)
    bias = backbone.fc.bias.clone()
    with fill_zero_parameters(backbone):
        assert (backbone.fc.weight != 0).all()
        assert torch.equal(backbone.fc.bias, bias)
    assert (backbone.fc.weight == 0).all()


def test_what_a_forward_put_into_a_list_or_dict_is_taken_out_again(backbone):
    backbone.cache, backbone.seen = cache, seen = {"first": 1}, [1]
    with preserve_state(backbone):
        backbone.cache["proxy"], backbone.cache["first"] = 2, 3
        backbone.seen += [2]
    assert (cache, seen) == ({"first": 1}, [1])
    assert backbone.cache is cache
    assert backbone.seen is seen


def test_a_muted_logger_says_nothing_and_then_what_it_said(caplog):
    with mute("another.library"):
        logging.getLogger("another.library.folding").warning("it cannot be simplified")
    assert not caplog.records
    logging.getLogger("another.library.folding").warning("it cannot be simplified")
    assert len(caplog.records) == 1
