"""The demo on few scenes; tests/cli/test_answering.py has what the command prints."""

import json
import multiprocessing
import re
from unittest.mock import MagicMock

import pytest
from PIL import Image

import exitlens as xl
from exitlens.delivery import demo
from exitlens.delivery.demo import CONDITIONS, EGT, DemoSettings, _describe_epochs, _read_log, build_network, load_data
from tests.ranks import call

FEW = DemoSettings(epochs=1, limit=64, batch_size=16, samples=8, oracle_samples=2, rounds=1, timed=128)


@pytest.mark.slow
def test_it_trains_compares_reports_and_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(DemoSettings, "quick", lambda seed: FEW)
    monkeypatch.setattr(demo.multiprocessing, "get_context", lambda _, get=multiprocessing.get_context: get("fork"))
    bar, tasks = MagicMock(), []
    bar.__enter__.return_value = bar
    bar.add_task.side_effect = lambda *_, total, **__: tasks.append((total, [])) or len(tasks) - 1
    bar.update.side_effect = lambda task, *, completed, **_: tasks[task][1].append(completed)
    monkeypatch.setattr(demo, "show_progress", lambda shown: bar)
    out = tmp_path / "d"
    code, printed, told = call(["demo", "--quick", "--out", str(out), "--json"])
    assert code == 0, told
    result = json.loads(printed)
    assert json.loads((out / "result.json").read_text()) == result
    check(result)
    for total, completed in tasks:
        assert sorted(completed) == completed
        assert completed[-1] == total
    tested = 4 + demo.MEASURING_STEPS
    assert [total for total, _ in tasks] == [tested, tested, 4, demo.TESTING_STEPS]
    assert len(tasks[-1][1]) == demo.TESTING_STEPS + 1  # every step was reached
    assert xl.load(out)[1] == xl.Policy.from_dict(result["policy"])
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 4
    assert re.search(r"measured on the clock,(.*?)</p>", report, re.DOTALL)[1].count("at batch size 64") == 1
    assert (out / "gallery.png").exists()
    scene = xl.demo.load_scenes("test", limit=1).images[0]
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    assert call(["explain", "--bundle", str(out), "--image", str(tmp_path / "scene.png")])[0] == 0
    code, _, told = call(["demo", "--quick", "--out", str(out)])
    assert code == 2
    assert "finished demo" in told
    clock = out / "training" / "seconds.json"  # what a call that was stopped while it tested leaves
    assert 0 < json.loads(clock.read_text()) < result["seconds"]
    clock.write_text("1000.0")
    (out / "result.json").unlink()
    for name, measured in {"_measure_speed": result["speed"], "_measure_overheads": result, "_write_report": None}.items():
        monkeypatch.setattr(demo, name, lambda *_, measured=measured: measured)  # measured above, and slow
    code, printed, told = call(["demo", "--quick", "--out", str(out), "--resume", "--json"])
    assert code == 0, told
    assert json.loads(printed)["seconds"] > 1000


def check(result):
    for name in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[name][condition]
            assert len(values["accuracy"]) == 4
            for measure in ("attention_cc", "attention_cc_null", "skill", "kl"):
                assert len(values[measure]) == 3
        for measure in ("deletion", "deletion_random", "binding", "binding_another", "cue_swap"):
            assert len(result[name]["agreeing"][measure]) == 4
    keys = {"batch_size", "speedup", "low", "high", "plain_ms", "ours_ms", "images", "rounds", "accuracy_drop", "cost"}
    for name in ("batch_1", "batch_64"):
        assert set(result["speed"][name]) == {*keys, "at_half_point"}
        assert set(result["speed"][name]["at_half_point"]) == keys
    assert result["step_time_ratio"] == result["step_time"]["speedup"]
    assert {"seconds", "seed", "versions", "machine"} <= set(result)


def test_the_two_test_sets_differ_in_their_backgrounds_only():
    data = load_data(DemoSettings(limit=8))
    assert set(data) == {"train", "validation", "calibration", *CONDITIONS}
    agreeing, disagreeing = (data[name] for name in CONDITIONS)
    assert (agreeing.labels == disagreeing.labels).all()
    assert (agreeing.masks == disagreeing.masks).all()
    assert (agreeing.images != disagreeing.images).any()


@pytest.mark.slow
def test_networks_before_training():
    train = load_data(DemoSettings(limit=8))["train"]
    net = build_network(EGT, train, 0)
    assert net.num_exits == 4
    assert net.is_channels_last  # fit gives it back so, and bundles record it
    assert build_network(None, train, 0).num_exits == 1


def test_progress_is_read_from_the_log(tmp_path):
    assert _describe_epochs(_read_log(tmp_path / "log.csv")) == "epoch 1"
    (tmp_path / "log.csv").write_text("epoch,accuracy_exit0,accuracy_exit1,cc_exit0\n1,0.5,0.75,0.25\n")
    told = _describe_epochs(_read_log(tmp_path / "log.csv"))
    assert told == "epoch 1: val accuracy 50.0 75.0 %, map CC with final 0.25"
