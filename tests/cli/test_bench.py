"""inspect, tune and bench on the command line."""

import json
import shutil

import pytest
import torch

import exitlens as xl

QUICK = ("--rounds", "1", "--seconds", "0")


def test_tune_stores_what_it_found_and_bench_writes_a_file(trained, tmp_path, call):
    bundle = shutil.copytree(trained, tmp_path / "run")
    found = json.loads(call("tune", "--bundle", bundle, "--precision", "float32", "--json")[1])
    assert found.pop("policy_kept")
    net, policy = xl.load(bundle / "bundle")
    assert net.tuning == xl.Tuning(**found)
    assert policy is not None
    shown = call("tune", "--bundle", bundle, "--precision", "bfloat16")[1]
    assert "* is stored" in shown
    assert "its policy was of float32: calibrate again" in shown
    net, policy = xl.load(bundle / "bundle")
    assert net.tuning.precision == "bfloat16"
    assert policy is None
    assert call("calibrate", "--bundle", bundle, "--max-cost", "0.9")[0] == 0
    out = tmp_path / "bench.json"
    assert call("bench", "--bundle", bundle, *QUICK, "--batch-sizes", "3", "--threads", "1", "--out", out)[0] == 0
    found = json.loads(out.read_text())
    assert found["machine"]["threads"] == 1
    assert {"exits, nobody leaves", "exits, policy", "plain, tuned"} <= {row["name"] for row in found["batches"][0]["rows"]}


def test_inspect_lists_places(call):
    code, out, _ = call("inspect", "--backbone", "small", "--size", "40", "--json")
    assert code == 0
    assert {"layer1", "layer2", "layer3"} <= {p["name"] for p in json.loads(out)["points"]}
    assert "layer2" in call("inspect", "--backbone", "small", "--size", "40")[1]


def test_inspect_marks_what_cost_and_time_would_choose(call):
    words = ("inspect", "--backbone", "small", "--size", "40")
    found = json.loads(call(*words, "--exits", "2", "--json")[1])
    assert found["exits"] == 2
    marked = {by: [p["name"] for p in found["points"] if by in p["chosen_by"]] for by in ("cost", "time")}
    assert [len(names) for names in marked.values()] == [2, 2]
    assert marked["cost"] == list(xl.attach("small", 2, 10, torch.zeros(1, 3, 40, 40)).info.at)
    assert "3 chosen by" in " ".join(call(*words)[1].split())
    assert "99 exits do not fit" in call(*words, "--exits", "99")[1]


def test_bench_as_a_table_and_as_json(trained, call):
    words = ("bench", "--bundle", trained, "--samples", "4", *QUICK)
    assert "tuned: see exitlens tune" in call(*words, "--batch-sizes", "1")[1]
    assert [one["batch"] for one in json.loads(call(*words, "--batch-sizes", "1,2", "--json")[1])["batches"]] == [1, 2]


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
    code, _, err = call(*words, "--bundle", trained)
    assert code == 2
    assert message in err
    assert (tmp_path / "there.json").read_text() == "precious"
