"""Which heads have maps."""

import pytest
from torch import nn

import exitlens as xl
from exitlens.model.heads.exit_heads import EvidenceHead
from exitlens.model.heads.group_neck import GroupNeck
from exitlens.model.heads.maps import have_maps, require_maps
from exitlens.model.layouts import Layout

VECTOR = Layout("vector")


def test_hidden_units_are_no_locations_and_groups_are():
    hidden, map_ = EvidenceHead(4, 2, VECTOR), EvidenceHead(4, 2)
    grouped = EvidenceHead(4, 2, VECTOR, GroupNeck(4, 3, (("a", (0,)), ("b", (1,))), 8), VECTOR)
    assert have_maps([map_, grouped])
    assert not have_maps([map_, hidden])
    assert have_maps([nn.Linear(2, 2)])
    require_maps([map_, grouped], "deletion")
    with pytest.raises(xl.InputError, match=r"net: deletion needs attention maps.*xl.attach\(..., groups="):
        require_maps([hidden], "deletion")
