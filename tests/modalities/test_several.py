import pytest
import torch

import exitlens as xl
from exitlens.modalities import IMAGE, SERIES, VECTOR, SeveralInputs
from exitlens.modalities.series import TIME_FIRST
from exitlens.types.inputs import InputFormat

FORMAT = InputFormat(("image", "vector"), (3, 8, 8), vocabulary=(None, None), shapes=((3, 8, 8), (4,)))
BOTH = SeveralInputs((("image", IMAGE), ("vector", VECTOR)))


def make_inputs(count=2):
    return {"image": torch.randn(count, 3, 8, 8), "vector": torch.randn(count, 4)}


def test_each_is_checked_by_its_own_kind():
    inputs = make_inputs()
    found = BOTH.check(dict(reversed(inputs.items())), FORMAT, "inputs", torch.zeros(1))
    assert all(a is b for a, b in zip(found, inputs.values(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vector": torch.zeros(2, 5)}, r"inputs\['vector'\]: expected \(B,4\), got \(2, 5\)"),
        ({"vector": torch.zeros(3, 4)}, "2 samples of 'image', 3 of 'vector'"),
        ({"image": torch.full((2, 3, 8, 8), torch.inf)}, r"inputs\['image'\]: expected finite values"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(xl.errors.InputError, match=said):
        BOTH.check(make_inputs() | change, FORMAT, "inputs", torch.zeros(1))


def test_all_are_needed():
    with pytest.raises(xl.errors.InputError, match=r"expected a dict with \['image', 'vector'\], got \['image'\]"):
        BOTH.check({"image": torch.zeros(2, 3, 8, 8)}, FORMAT, "inputs", torch.zeros(1))
    with pytest.raises(xl.errors.InputError, match="got Tensor"):
        BOTH.check(torch.zeros(2, 3, 8, 8), FORMAT, "inputs", torch.zeros(1))


def test_maps_lie_on_the_first():
    inputs, cells = make_inputs(), torch.ones(2, 2, 2, dtype=torch.bool)
    found = BOTH.delete(inputs, cells)
    assert found["vector"] is inputs["vector"]
    torch.testing.assert_close(found["image"], IMAGE.delete(inputs["image"], cells))
    assert BOTH.grid == (5, 5)
    assert BOTH.coarsen(torch.ones(1, 10, 10), (5, 5)).shape == (1, 5, 5)
    series = SeveralInputs((("series", SERIES), ("vector", VECTOR)))
    assert series.adapt(InputFormat(("series", "vector"), (9, 2), channels_last=True)).first is TIME_FIRST
    assert series.grid == (16,)


def test_a_file_holds_only_one():
    with pytest.raises(xl.errors.InputError, match=r"photo.jpg: the network takes \['image', 'vector'\]"):
        BOTH.read("photo.jpg", None)
