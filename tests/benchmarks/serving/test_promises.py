"""What serving promises, from what was measured, and the tables of its page."""

from benchmarks.serving.page import write_designs, write_promises, write_throughput
from benchmarks.serving.promises import list_promises

SERVER = {"samples_a_second": 100.0, "p99_ms": [50.0, 40.0, 60.0], "of_the_load": False}
RUNS = {
    "throughput-small-16": {"exits": SERVER, "plain": SERVER | {"samples_a_second": 40.0}},
    "overhead": {"above_ms": 0.9},
    "leavers-small": {"ratio": 0.2},
    "answers": {"samples": 10, "connections": 2, "differing": 3, "differing_near": 2, "unanswered": 1, "score_gap": 1e-7},
    "faults-reload": {"lost": 0, "wrong": 1, "ready_codes": {"200": 7, "503": 2}},
    "faults-terminate": {"lost": 0, "wrong": 0, "ready_codes": {"200": 7, "0": 9}},
    "overload-small": {
        "limit_ms": 100.0,
        "memory_mb": {"before": 10.0, "peak": 30.0},
        "overload": {"accepted_p99_ms": 150.0, "others": 0},
        "recovery_seconds": None,
    },
    "hostile": {
        "count": 5,
        "by_outcome": {"400": 2, "closed": 1, "500": 2},
        "kinds_without_reason": ["a"],
        "beside_failures": 1,
        "beside_wrong": 0,
    },
    "simulated-small": {
        "ms": {},
        "these times": {"replicas": 10.0, "pools": 8.0},
        "million": {"machines": 9, "rate": 1.0, "cores": 4, "headroom": 0.7},
    },
}


def test_promises_are_read_off_the_runs():
    found = {one.key: one.measured for run in RUNS for one in list_promises(run, RUNS[run])}
    assert found["serving|small-16|plain"] == 2.5
    assert found["serving|answers"] == 2  # one not near its threshold, one without an answer
    assert (found["serving|reload|wrong"], found["serving|reload|ready"]) == (1, 2)
    assert "serving|terminate|ready" not in found  # nobody is there to ask
    assert found["serving|overload|small|p99"] == 1.5
    assert found["serving|overload|small|recovery"] > 2
    assert found["serving|hostile|bad"] == 3  # two answered 500, one kind without a reason


def test_tables():
    assert any("small | 16 | with exits | 100 | 50 / 40 / 60" in line for line in write_throughput(RUNS))
    assert any("≤ 0.5" in line for line in write_promises(RUNS))
    assert any("1,000,000 take 9 machines at 70 % load" in line for line in write_designs(RUNS))
    assert list(write_designs({})) == []
