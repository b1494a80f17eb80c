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
