import pytest

import exitlens as xl
from exitlens.types import Tiles


def test_sizes_by_hand():
    tiles = Tiles(32, 16)
    assert tiles.count((96, 64)) == (3, 2)
    assert tiles.window((96, 64)) == (64, 64)
    assert tiles.window((48, 200)) == (48, 64)
    assert tiles.find_overhead((96, 64)) == 4
    assert Tiles(32, 0).find_overhead((64, 64)) == 1
    tiles.check_stride(16)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Tiles(0, 1), "tiles: side: expected a whole number of 1 or more"),
        (lambda: Tiles(8, -1), "tiles: halo: expected a whole number of 0 or more"),
        (lambda: Tiles(32, 8).count((33, 32)), r"multiples of 32, got \(33, 32\)"),
        (lambda: Tiles(32, 8).check_stride(16), "features of 16 pixels a cell do not divide a side of 32 and a halo of 8"),
        (lambda: Tiles(32, 8).check_stride(2.5), "features of 2.5 pixels a cell"),
    ],
)
def test_what_does_not_fit(ask, message):
    with pytest.raises(xl.errors.InputError, match=message):
        ask()
