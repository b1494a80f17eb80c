"""Copies in a tuning's formats."""

import torch

from exitlens.model.engine.prepare import prepare_graph, prepare_head
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net


def test_prepared_is_a_copy():
    body = torch.fx.symbolic_trace(TinyNet().eval())
    twin = prepare_graph(body, Tuning(folded=True, channels_last=True))
    assert not {p.data_ptr() for p in body.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert all(p.requires_grad for p in body.parameters())
    assert not any(p.requires_grad for p in twin.parameters())


def test_heads_stay_in_their_own_precision_and_are_copies():
    net = make_net("keep")
    for k in range(3):
        head, twin = net.head(k), prepare_head(net.head(k), Tuning(precision="bfloat16"))
        assert twin is not head
        assert not any(p.requires_grad for p in twin.parameters())
    assert next(twin.tail.evaluation.parameters()).dtype == torch.bfloat16  # the kept classifier is part of the backbone
    assert next(prepare_head(net.head(0), Tuning(precision="bfloat16")).parameters()).dtype == torch.float32
    assert all(p.requires_grad for p in net.parameters())
