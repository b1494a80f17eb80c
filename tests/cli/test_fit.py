"""fit on the command line."""

import json
import shutil

import pytest

import exitlens as xl
from exitlens.model.cutting import placement


def test_exits_placed_by_time_stay_where_they_are_on_resume(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr("exitlens.model.cutting.node_timing.SECONDS", 0.0)
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--exits", "2", "--placement", "time", "--out")
    code, out, err = call(*words, tmp_path / "r", "--json")
    assert code == 0, err
    assert len(json.loads(out)["accuracy"]) == 3
    at = xl.load(tmp_path / "r")[0].info.at
    monkeypatch.setattr(placement, "time_shares", lambda *args: pytest.fail("timed again"))
    code, _, err = call(*words, tmp_path / "r", "--resume")
    assert code == 0, err
    assert xl.load(tmp_path / "r")[0].info.at == at


def test_placement_needs_a_number_of_exits(folder, tmp_path, call):
    words = ("fit", "--data", folder, "--size", "32", "--out", tmp_path / "n", "--placement")
    assert "only with a number in at" in call(*words, "time", "--exits", "layer1")[2]
    assert "placement: expected 'cost'" in call(*words, "speed", "--exits", "2")[2]
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "none"), "no folder"),
        (("--data", "images/dark"), "class folder"),
        (("--exits", "layer9"), "Did you mean"),
        (("--exits", "layer3,layer1"), "order"),
        (("--epochs", "0"), "epochs"),
        (("--backbone", "resnet18"), "backbone"),
        (("--size", "-5"), "size"),
        (("--init-weights", "none.pt"), "no file none.pt"),
        (("--out", "images"), "not empty"),
    ],
)
def test_what_fit_refuses_leaves_nothing(folder, tmp_path, monkeypatch, call, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(folder)
    code, _, err = call("fit", "--data", "images", "--out", "o", *words)
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_bad_files_and_the_cache(folder, tmp_path, call):
    own, out = shutil.copytree(folder, tmp_path / "own"), tmp_path / "r"
    for path in sorted((own / "dark").glob("*.png"))[:12]:
        path.write_text("no image")
    words = ("fit", "--data", own, "--size", "32", "--epochs", "1", "--batch-size", "16", "--out", out, "--workers", "2")
    code, _, err = call(*words)
    assert code == 2
    assert "cannot be read as an image" in err
    assert "--skip-bad" in err
    code, shown, err = call(*words, "--skip-bad", "--cache", tmp_path / "cache", "--resume", "--json")
    assert code == 0, err
    bad = json.loads(shown)["bad"]
    assert bad
    assert all("own/dark" in reason for reason in bad)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) > 30
    for verb in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):
        line = (*verb, "--bundle", out, "--data", own, "--cache", tmp_path / "cache", "--skip-bad")
        code, shown, err = call(*line, "--json")
        assert code == 0, err
        assert len(json.loads(shown)["bad"]) == 12
    assert "skipped" in call(*line)[1]
    assert "in memory" in call("evaluate", "--bundle", out, "--data", "scenes", "--cache", tmp_path / "cache")[2]
    code, shown, err = call("report", out, "--data", own, "--skip-bad", "--out", tmp_path / "report.html", "--json")
    assert code == 0, err
    assert len(json.loads(shown)["bad"]) == 12
    assert "without 12 that cannot be read" in (tmp_path / "report.html").read_text()
