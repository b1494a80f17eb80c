"""The tables, and what is promised, from figures that are made up and from those that are committed."""

from benchmarks.edge.__main__ import list_runs
from benchmarks.edge.page import SPEED, write_decisions, write_promises, write_speed
from benchmarks.edge.promises import list_promises
from benchmarks.edge.runs import EDGE

MS = {name: [1.0, 0.9, 1.1] for name in ("exits, PyTorch", "plain, ONNX Runtime", "runtime", "cascade", "runtime, OpenVINO")}
RATIOS = ("torch_over_runtime", "plain_over_runtime", "runtime_over_cascade", "earlyon_over_runtime", "efficiency", "saving")
ONE = {"machine": {"threads": 2}, "ms": MS, "ideal_ms": [0.5, 0.4, 0.6], **{name: [2.4, 2.3, 2.5] for name in RATIOS}}
RUNS = {
    "decisions": {"samples": 10, "near": 1, "runtime": {"1": {"others": 1, "others_near": 0, "map_gap": 1e-6}}},
    "speed-resnet50": {"1": ONE, "32": ONE},
    "points-scenes": {str(i): {"plain_over_runtime": [3.0 + i], "points_lost": 0.2} for i in range(3)},
    "int8-demo": {"int8_instructions": "avx_vnni", "agreement": [1.0, 0.98], "1": [1.5, 1.4, 1.6], "32": [2.0, 1.9, 2.1]},
    "install": {
        "megabytes": 100.0,
        **{f"{n}": [0.2] for n in ("import_seconds", "first_answer_seconds", "memory_megabytes")},
    },
    "browser": {"first_answer_seconds": [0.5]},
}


def test_promises():
    found = {one.key: one for run in RUNS for one in list_promises(run, RUNS[run])}
    missed = {key for key, one in found.items() if not one.is_kept}
    assert missed == {"edge|others|runtime|1", "edge|labels|demo"}
    assert found["edge|points|scenes"].measured == 4.0
    assert {"edge|plain|resnet50|1", "edge|saving|resnet50|1", "edge|earlyon|resnet50|1", "edge|browser"} < set(found)


def test_without_instructions_for_int8_no_speed_is_promised():
    keys = [one.key for one in list_promises("int8-demo", RUNS["int8-demo"] | {"int8_instructions": "none"})]
    assert keys == ["edge|labels|demo"]


def test_tables():
    lines = list(write_speed(RUNS))
    assert "2 threads" in lines[0]
    assert len([line for line in lines if line.startswith("| resnet50")]) == 2
    assert lines[2].count("|") == len(SPEED) + 1
    assert any("missed" in line for line in write_promises(RUNS))
    assert list(write_decisions(RUNS["decisions"]))[-1] == "| runtime | 1 | 0 | 1e-06 |"


def test_every_run_is_there():
    assert set(EDGE.read()) == set(list_runs(quick=False))
