import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.raw import ArrayReading, RawPart, arrange_parts, describe_length

NAN = float("nan")


def part(series, faults=()):
    return RawPart(str, ["a"] * len(series), series, faults=faults)


def test_series_get_one_length():
    one, other = torch.ones(2, 3), torch.ones(2, 5)
    found = arrange_parts({"": part([one, other])}, "x", ArrayReading(size=4))
    assert found.rows[""].arrays[:, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert found.preprocess == xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, length=4)
    assert found.note == "series: 4 steps; 1 longer ones are cut, 1 shorter ones filled with zeros, at the end"
    with pytest.raises(xl.DataError, match="x has series of 3 to 5 steps"):
        arrange_parts({"train": part([one]), "test": part([other])}, "x", ArrayReading())
    assert describe_length(3, 0, 0) == ""


def test_rows_with_faults():
    series = [None, torch.ones(1, 3), torch.tensor([[1.0, NAN, 2.0]]), torch.ones(2, 3)]
    rows = arrange_parts({"": part(series, ["no list", "", "", ""])}, "x", ArrayReading()).rows[""]
    assert [fault[:24] for fault in rows.faults] == ["no list", "", "a gap (NaN) at step 1 of", "expected 1 channel(s) as"]
    assert rows.arrays.shape == (4, 1, 3)
    with pytest.raises(xl.DataError, match="x has no series that can be read: no list"):
        arrange_parts({"": part([None], ["no list"])}, "x", ArrayReading())


def test_vectors():
    raw = RawPart(str, ["a", "b"], vectors=torch.tensor([[1.0, 2.0], [3.0, NAN]]), names=("u", "v"))
    found = arrange_parts({"": raw}, "x", ArrayReading())
    assert found.preprocess == xl.VectorPreprocess((0.0,) * 2, (1.0,) * 2, ("u", "v"))
    assert found.rows[""].faults[0] == ""
    assert found.rows[""].faults[1].startswith("a gap (NaN) for feature 'v'")
    with pytest.raises(xl.DataError, match="expected 1 features as in training, got 2"):
        arrange_parts({"": raw}, "x", ArrayReading(known=xl.VectorPreprocess((0.0,), (1.0,))))
