import pytest

import exitlens as xl
from exitlens.delivery import run_setup


def test_a_neck_that_nobody_asked_for_is_left_out_where_it_cannot_be(tiny_set, monkeypatch):
    asked = []

    def attach(*args, head, **how):
        asked.append(head)
        if head == "context":
            raise xl.HeadError("head: no plane")
        return xl.attach(*args, head=head, **how)

    monkeypatch.setattr(run_setup, "attach", attach)
    assert run_setup.build_network("small", "layer1", tiny_set).info.head == "evidence"
    assert asked == ["context", "evidence"]
    with pytest.raises(xl.HeadError):
        run_setup.build_network("small", "layer1", tiny_set, head="context")


def test_what_is_built_is_in_channels_last_and_where_exits_stand(tiny_set):
    net = run_setup.build_network("small", "layer1, layer3", tiny_set)
    assert net.is_channels_last
    assert net.info.at == ("layer1", "layer3")
    assert net.info.source == "small"
    assert run_setup.build_network("small", "", tiny_set, keep_final=True).info.at == ("layer1", "layer2", "layer3")
