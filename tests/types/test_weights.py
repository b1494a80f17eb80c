import pytest

import exitlens as xl
from exitlens.types.weights import SHOWN, list_names


def test_few_names_are_listed_and_many_are_counted():
    assert list_names(["a", "b"]) == "a, b"
    assert list_names(["n"] * (SHOWN + 2)) == ", ".join(["n"] * SHOWN) + " and 2 more"


@pytest.mark.parametrize(("missing", "misshapen", "is_whole"), [((), (), True), (("a",), (), False), ((), ("b",), False)])
def test_a_backbone_is_whole_without_random_tensors(missing, misshapen, is_whole):
    report = xl.types.WeightsReport("w.pth", ("c",), missing=missing, misshapen=misshapen)
    assert report.is_whole is is_whole
    assert len(report.lines()) == 2 - is_whole
    said = []
    report.tell_misfits(said.append)
    assert said == [f"weights: w.pth: {line}" for line in report.lines()[1:]]
