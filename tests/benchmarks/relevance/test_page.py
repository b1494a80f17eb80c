from benchmarks.relevance.page import EXPLAIN, MAPS, write_network
from benchmarks.relevance.promises import list_promises

TIMES = {"forward_ms": [2.0, 1.9, 2.1], "explain_ms": [3.0, 2.9, 3.1], "with_relevance_ms": [5.0, 4.9, 5.1]}
FOUND = {
    "title": "a network",
    "images": 8,
    "locations": "4 x 4",
    "maps": {
        "attention, exit 0": {
            "grid": "5 x 5",
            "deletion_share": [None, None],
            "insertion_share": [0.5, 0.1],
            "ms": [12.34, 12.0, 13.0],
        },
        "other": {"deletion_share": [0.987, 0.05], "insertion_share": [0.5, 0.1], "ms": [1.234, 1.2, 1.3]},
    },
    "explain": {"0": TIMES | {"ratio": [1.0, 0.9, 1.1]}, "1": TIMES | {"ratio": [1.6, 1.5, 1.7]}},
}


def test_a_row_for_every_map_and_every_exit():
    lines = write_network(FOUND)
    assert "a network" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(MAPS), len(EXPLAIN)}
    assert ["attention, exit 0", "", "0.50 ± 0.10", "12.3 (12.0 to 13.0)"] in rows
    assert ["other", "0.99 ± 0.05", "0.50 ± 0.10", "1.23 (1.20 to 1.30)"] in rows
    assert rows[-1] == ["final", "2.00 (1.90 to 2.10)", "3.00 (2.90 to 3.10)", "5.00 (4.90 to 5.10)", "1.60 (1.50 to 1.70)"]


def test_relevance_may_add_one_and_a_half_times_the_forward_pass():
    promises = list(list_promises("demo", FOUND))
    assert [promise.is_kept for promise in promises] == [True, False]
    assert len({promise.key for promise in promises}) == 2
