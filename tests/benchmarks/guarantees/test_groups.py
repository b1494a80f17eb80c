"""Correlated groups are drawn whole, and every way to name them is judged by the population's risks."""

import itertools

import pytest
import torch

from benchmarks.guarantees.groups import DELTAS, KINDS, LIMITS, MODES, count_one_draw, draw_groups, make_groups


def test_groups_are_drawn_whole_and_may_come_twice():
    trace = make_groups(1)
    rows, drawn = draw_groups(trace, 50, torch.Generator().manual_seed(0))
    for one in range(50):
        mine = rows[drawn == one]
        (group,) = trace.groups[mine].unique().tolist()
        assert torch.equal(mine, (trace.groups == group).nonzero().flatten())


@pytest.mark.slow  # two seconds
def test_a_draw_has_a_row_for_every_way_set_limit_and_delta():
    found = count_one_draw(2)
    assert set(found) == {f"{KINDS[2]}, {mode}, {label}" for mode, labels in MODES.items() for label in labels}
    for rows in found.values():
        assert {tuple(row[:2]) for row in rows} == set(itertools.product(LIMITS, DELTAS))
        assert all(0.2 - 1e-6 <= cost <= 1 for *_, cost in rows)
