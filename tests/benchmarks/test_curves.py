import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.curves import area_under_curve, upper_hull
from exitlens.errors import InputError


def test_hull_leaves_out_what_a_mixture_beats():
    points = [(0.5, 0.6), (0.0, 0.0), (1.0, 0.9), (0.25, 0.7), (1.2, 0.8), (0.6, 0.78)]
    assert upper_hull(points) == [(0.0, 0.0), (0.25, 0.7), (1.0, 0.9)]


def test_area_by_hand():
    assert area_under_curve([(1.0, 0.8)], 0.5, 1.0) == pytest.approx(0.6)  # a line from (0, 0): 0.4 to 0.8
    assert area_under_curve([(0.5, 0.8)], 0.5, 1.0) == pytest.approx(0.8)  # constant beyond the last
    assert area_under_curve([(0.5, 0.7), (1.0, 0.9)], 0.0, 1.0, guess=0.3) == pytest.approx((0.5 + 0.8) / 2)
    assert area_under_curve([(0.4, 0.2)], 0.1, 1.0, guess=0.5) == pytest.approx(0.5)  # guessing is better
    points = [(0.5, 0.7), (0.75, 0.1), (1.0, 0.9)]  # one that no hull would keep
    assert area_under_curve(points, 0.5, 1.0, hull=False) == pytest.approx((0.4 + 0.5) / 2)
    with pytest.raises(InputError, match="points, low, high"):
        area_under_curve([], 0.1, 1.0)
    with pytest.raises(InputError, match="low"):
        area_under_curve([(0.4, 0.2)], 1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_area_equals_integration_on_a_fine_grid(points):
    hull = upper_hull([(0.0, 0.1), *points])
    assert all(h >= p[1] - 1e-9 for p in points for h in [float(np.interp(p[0], *zip(*hull, strict=True)))])
    grid = np.linspace(0.1, 1.0, 20001)
    fine = np.trapezoid(np.interp(grid, *zip(*hull, strict=True)), grid) / 0.9
    assert area_under_curve(points, guess=0.1) == pytest.approx(fine, abs=1e-3)
