"""The page of training from its results."""

from benchmarks.training.page import HEAD, list_rows


def test_a_row_for_every_network():
    seconds = {"every epoch": [2.0, 1.9, 2.1], "kept": [0.1, 0.1, 0.1], "probe": [0.01, 0.01, 0.01]}
    found = {"samples": 8, "pixels": 32, "seconds": seconds, "seconds_once": 1.5, "speedup": [20.0, 19.0, 21.0]}
    (row,) = list_rows({"x-evidence": found | {"kb_a_sample": 163.8}})
    assert len(row) == len(HEAD)
    assert row[0] == "x, evidence heads"
    assert row[5] == "20.0 (19.0 to 21.0)"
