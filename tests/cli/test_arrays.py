"""Series, volumes and vectors from the command line: fit on files, calibrate, evaluate, predict."""

import csv

import numpy as np
import pytest

from tests.data.conftest import TS


def write_ts(path, count, seed):
    """Noisy series of 32 steps; those of the class ``up`` rise."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=32) * 0.2 + (i % 2) * np.linspace(-2, 2, 32) for i in range(count)]
    head = TS[: TS.index("1,2,3")].replace("@dimensions 2", "@dimensions 1").replace("run Walk", "flat up")
    path.write_text(head + "".join(f"{','.join(map(str, row))}:{('flat', 'up')[i % 2]}\n" for i, row in enumerate(rows)))


@pytest.mark.slow
def test_series_from_files_to_answers(call, tmp_path):
    (tmp_path / "data").mkdir()
    write_ts(tmp_path / "data" / "Made_TRAIN.ts", 80, 0)
    write_ts(tmp_path / "data" / "Made_TEST.ts", 20, 1)
    run = tmp_path / "run"
    how = ("--exits", 2, "--epochs", 4, "--batch-size", 16, "--learning-rate", 0.01, "--workers", 0)
    out = call.ok("fit", "--data", tmp_path / "data", "--out", run, *how)
    assert "test: all of 'test'" in " ".join(out.split())
    call.ok("calibrate", "--bundle", run, "--max-accuracy-drop", 0.1)
    assert call.json("evaluate", "--bundle", run)["accuracy"] > 0.8
    (tmp_path / "more").mkdir()
    write_ts(tmp_path / "more" / "More.ts", 20, 2)
    assert call.json("evaluate", "--bundle", run, "--data", tmp_path / "more")["accuracy"] > 0.8
    out = call.ok("predict", "--bundle", run, "--data", tmp_path / "data", "--out", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 100
    assert rows[0]["file"].endswith("Made_TEST.ts:9")
    assert np.mean([row["label"] == ("flat", "up")[i % 2] for i, row in enumerate(rows)]) > 0.8
    np.save(tmp_path / "one.npy", np.linspace(-2, 2, 32)[None])
    found = call.json("predict", "--bundle", run, "--data", tmp_path / "one.npy")
    assert found["predictions"][0]["label"] == "up"
