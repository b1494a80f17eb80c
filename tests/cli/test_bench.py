"""inspect, tune and bench on the command line."""

import json
import shutil

import pytest
import torch

import exitlens as xl

QUICK = ("--rounds", "1", "--seconds", "0")


@pytest.fixture(autouse=True)
def _little_is_timed(monkeypatch):
    monkeypatch.setattr("exitlens.model.cutting.placement.SECONDS", 0.0)
    monkeypatch.setattr("exitlens.model.engine.autotune.MICRO_BATCHES", (1, 8))


@pytest.mark.slow
def test_tune_stores_what_it_found(trained, tmp_path, call):
    bundle = shutil.copytree(trained, tmp_path / "run")
    found = call.json("tune", "--bundle", bundle, "--precision", "float32")
    assert found.pop("policy_kept")
    net, policy = xl.load(bundle)
    assert net.tuning == xl.Tuning(**found)
    assert policy is not None
    shown = call("tune", "--bundle", bundle, "--precision", "bfloat16")[1]
    assert "* is stored" in shown
    assert "calibrate again" in shown
    net, policy = xl.load(bundle)
    assert net.tuning.precision == "bfloat16"
    assert policy is None


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tune_keeps_policies_of_the_same_precision(trained, tmp_path, call, monkeypatch, precision):
    bundle = shutil.copytree(trained / "bundle", tmp_path / "bundle")
    net, own = xl.load(bundle)
    xl.save(net, own, bundle, policies={"fast": own}, overwrite=True)
    shutil.copy(trained / "data.json", tmp_path / "data.json")
    measured = {"ms_per_sample": []}

    def tune(net, *_, **__):
        net.tuning = xl.Tuning(precision=precision, measured=measured)
        return net.tuning

    monkeypatch.setattr(xl.ExitNet, "tune", tune)
    shown = call.ok("tune", "--bundle", tmp_path)
    left_out = "it runs in bfloat16 now, its policies (default, fast) were for float32: calibrate again"
    assert (left_out in " ".join(shown.split())) == (precision == "bfloat16")
    assert xl.load_policies(bundle) == ({"default": own, "fast": own} if precision == "float32" else {})
    assert call.json("tune", "--bundle", tmp_path)["policy_kept"]


@pytest.mark.slow
def test_inspect_marks_what_cost_and_time_would_choose(call):
    words = ("inspect", "--backbone", "small", "--size", "40")
    found = call.json(*words, "--exits", "2")
    assert found["exits"] == 2
    assert {"layer1", "layer2", "layer3"} <= {p["name"] for p in found["points"]}
    marked = {by: [p["name"] for p in found["points"] if by in p["chosen_by"]] for by in ("cost", "time")}
    assert [len(names) for names in marked.values()] == [2, 2]
    assert marked["cost"] == list(xl.attach("small", 2, 10, torch.zeros(1, 3, 40, 40)).info.at)
    shown = call(*words, "--exits", "99")[1]
    assert "99 exits do not fit" in shown
    assert "layer2" in shown


def test_bench_as_a_table_and_as_a_file(trained, tmp_path, call):
    words = ("bench", "--bundle", trained, "--samples", "4", *QUICK, "--batch-sizes", "3,4", "--threads", "1")
    shown = call.ok(*words, "--out", tmp_path / "bench.json")
    assert "not tuned, runs as suits" in shown
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["machine"]["threads"] == 1
    assert [one["batch"] for one in found["batches"]] == [3, 4]
    assert {"exits, nobody leaves", "exits, policy", "plain, tuned"} <= {row["name"] for row in found["batches"][0]["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "--batch-sizes", "1,x"), "batch-sizes"),
        (("bench", "--out", "there.json"), "exists"),
        (("tune", "--precision", "half"), "precision"),
    ],
)
def test_what_they_refuse(trained, tmp_path, monkeypatch, call, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("precious")
    assert message in call.error(*words, "--bundle", trained)
    assert (tmp_path / "there.json").read_text() == "precious"
