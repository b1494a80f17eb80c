"""The demo without its trainings; the whole of it is run by tests/cli/test_train.py."""

import json
from functools import partial

import pytest

import exitlens as xl
from exitlens.delivery.demo import demo, training
from exitlens.delivery.demo.training import DemoSettings


@pytest.mark.slow
def test_it_compares_reports_and_saves(tmp_path, monkeypatch):
    settings = DemoSettings(epochs=1, limit=64, batch_size=8, samples=8, rounds=1)
    train = training.load_data(settings)["train"]
    nets = {name: training.build_network(loss, train, 0).eval() for name, loss in training.RUNS.items()}
    monkeypatch.setattr(demo, "train_all", lambda out, settings, quiet: nets)
    monkeypatch.setattr(demo, "compare_steps", partial(demo.compare_steps, steps=2))
    result = demo.run_demo(tmp_path / "d", settings, quiet=True)
    assert json.dumps(json.loads((tmp_path / "d" / "result.json").read_text())) == json.dumps(result)
    assert len(result["egt"]["agreeing"]["accuracy"]) == 4
    keys = {"batch_size", "speedup", "low", "high", "plain_ms", "ours_ms", "images", "rounds", "accuracy_drop", "cost"}
    for name in ("batch_1", "batch_64"):
        assert set(result["speed"][name]) == {*keys, "at_half_point"}
        assert set(result["speed"][name]["at_half_point"]) == keys
    assert result["step_time_ratio"] == result["step_time"]["speedup"]
    assert xl.load(tmp_path / "d")[1] == xl.Policy.from_dict(result["policy"])
    assert (tmp_path / "d" / "report.html").read_text().count("<svg") == 4
    assert (tmp_path / "d" / "gallery.png").exists()
    with pytest.raises(xl.OutputExistsError, match="finished demo"):
        demo.run_demo(tmp_path / "d", settings, quiet=True)
