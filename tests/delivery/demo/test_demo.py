"""The whole demo, from the command line, on few scenes; what the command prints is in tests/cli/test_demo.py."""

import json
from functools import partial

import pytest
from PIL import Image

import exitlens as xl
from exitlens.delivery.demo import demo
from exitlens.delivery.demo.training import DemoSettings
from tests.ranks import call

FEW = DemoSettings(epochs=1, limit=64, batch_size=8, samples=8, rounds=1)


@pytest.mark.slow
def test_it_trains_compares_reports_and_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(DemoSettings, "quick", lambda seed: FEW)
    monkeypatch.setattr(demo, "compare_steps", partial(demo.compare_steps, steps=2))
    out = tmp_path / "d"
    code, printed, told = call(["demo", "--quick", "--out", str(out), "--json"])
    assert code == 0, told
    result = json.loads(printed)
    assert json.loads((out / "result.json").read_text()) == result
    check(result)
    assert xl.load(out)[1] == xl.Policy.from_dict(result["policy"])
    assert (out / "report.html").read_text().count("<svg") == 4
    assert (out / "gallery.png").exists()
    scene = xl.load_scenes("test", limit=1).images[0]
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    assert call(["explain", "--bundle", str(out), "--image", str(tmp_path / "scene.png")])[0] == 0
    code, _, told = call(["demo", "--quick", "--out", str(out)])
    assert code == 2
    assert "finished demo" in told


def check(result):
    for name in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[name][condition]
            for measure in ("accuracy", "deletion", "deletion_random"):
                assert len(values[measure]) == 4
            for measure in ("attention_cc", "attention_cc_null", "skill", "kl"):
                assert len(values[measure]) == 3
    keys = {"batch_size", "speedup", "low", "high", "plain_ms", "ours_ms", "images", "rounds", "accuracy_drop", "cost"}
    for name in ("batch_1", "batch_64"):
        assert set(result["speed"][name]) == {*keys, "at_half_point"}
        assert set(result["speed"][name]["at_half_point"]) == keys
    assert result["step_time_ratio"] == result["step_time"]["speedup"]
    assert {"seconds", "seed", "versions", "machine"} <= set(result)
