import math

import pytest

from exitlens.model.geometry.grids import NOWHERE, Grid, Line, join


def test_a_strided_kernel_of_three_starts_half_a_cell_early():
    line = Line().slide(3, 2, 1)
    assert line == Line(0.5, 2, 3)  # a cell of two pixels has its middle at 1
    assert line.slide(3, 2, 1) == Line(0.5, 4, 7)
    assert Line().slide(4, 2, 1) == Line(1, 2, 4)


def test_dilation_widens_and_padding_moves():
    assert Line(1, 2, 4).slide(3, dilation=2) == Line(5, 2, 12)
    assert Line(1, 2, 4).slide(3, before=2) == Line(-1, 2, 8)


def test_scattering_undoes_sliding():
    line = Line().slide(4, 2, 1)
    assert (line.scatter(4, 2, 1, 1).start, line.scatter(4, 2, 1, 1).jump) == (0.5, 1)


def test_resizing_keeps_edges_or_corners():
    line = Line(2, 4, 4)  # 4 cells of 16 pixels
    assert line.resize(4, 8, reads=2) == Line(1, 2, 8)
    assert line.resize(4, 8, aligned=True, reads=2) == Line(2, 12 / 7, 8)
    assert line.resize(4, 2) == Line(2, 8, 4)  # the first of two
    assert line.pool_to(4, 2) == Line(4, 8, 8)
    assert line.pool_to(4, 3).reach == 4 + 2 * 4  # windows overlap


def test_the_middle_of_locations():
    assert Line(1, 2).middle(4) == 4
    assert Line(5).skip(2, 3) == Line(7, 3)


def test_joined_branches_weigh_the_same_and_reach_what_all_of_them_reach():
    one, other = (Grid((2,), (line,), (4,)) for line in (Line(0, 2, 2), Line(1, 2, 6)))
    assert join([one, other]) == Grid((2,), (Line(0.5, 2, 6),), (4,))
    assert join([one, Grid((2,), (Line(2, 2, 2),), (4,))]).lines[0] == Line(1, 2, 4)
    assert join([one, NOWHERE]).lines[0] == Line(0, 2, math.inf)
    assert join([NOWHERE]) == NOWHERE
    assert join([one, one.move([1])]) == NOWHERE


@pytest.mark.parametrize("reach", [2, math.inf])
def test_seeing_all_is_final(reach):
    assert Grid((2,), (Line(0, 1, reach),), (4,)).see_all().lines[0].reach == math.inf
