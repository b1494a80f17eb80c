"""The verbs as a user types them, in this process; one test starts the real command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exitlens import cli


def run(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["exitlens", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *words: run(capsys, monkeypatch, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for c, name in enumerate(("dark", "bright")):
        (root / name).mkdir()
        for i in range(30):
            pixels = rng.integers(0, 90, (32, 32, 3)) + 140 * c
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    """A run directory made by the command line, with a policy."""
    out = tmp_path_factory.mktemp("runs") / "x"
    words = ["fit", "--data", folder, "--out", out, "--size", "32", "--epochs", "1", "--batch-size", "16", "--json"]
    for line in (words, ["calibrate", "--bundle", out, "--max-accuracy-drop", "0.5", "--json"]):
        code = subprocess.run([sys.executable, "-m", "exitlens.cli", *map(str, line)], check=False, capture_output=True)
        assert code.returncode == 0, code.stderr.decode()
        json.loads(code.stdout)
    return out


def test_the_whole_flow_on_a_folder(trained, folder, tmp_path, call):
    code, out, _ = call("evaluate", "--bundle", trained, "--json")
    assert code == 0
    assert len(json.loads(out)["exits"]) == 4
    code, out, _ = call("predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "p.csv", "--json")
    assert code == 0
    assert len(json.loads(out)["predictions"]) == 60
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert {row["label"] for row in rows} <= {"dark", "bright"}
    image = folder / "dark" / "00.png"
    code, out, _ = call("explain", "--bundle", trained / "bundle", "--image", image, "--out", tmp_path / "why", "--json")
    assert code == 0
    assert json.loads(out)["label_name"] in ("dark", "bright")
    assert len(list((tmp_path / "why").glob("*.png"))) == 5
    code, out, _ = call("bench", "--bundle", trained, "--samples", "4", "--rounds", "1", "--batch-sizes", "1,2", "--json")
    assert code == 0
    assert len(json.loads(out)["speed"]) == 2


def test_tables_for_people(trained, folder, tmp_path, call):
    assert "threshold" in call("calibrate", "--bundle", trained, "--max-cost", "0.9")[1]
    assert "routed" in call("evaluate", "--bundle", trained, "--report", tmp_path / "r.html", "--baseline", trained)[1]
    assert (tmp_path / "r.html").stat().st_size > 10_000
    assert "samples, the first" in call("predict", "--bundle", trained, "--data", folder / "dark")[1]
    assert "answered" in call("explain", "--bundle", trained, "--image", folder / "dark" / "01.png")[1]
    assert "faster" in call("bench", "--bundle", trained, "--samples", "2", "--rounds", "1", "--batch-sizes", "1")[1]
    assert "routed" in call("evaluate", "--bundle", trained, "--data", folder)[1]


@pytest.mark.parametrize("verb", ["demo", "fit", "calibrate", "evaluate", "predict", "explain", "inspect", "bench"])
def test_help_shows_an_example(verb, call):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert "Example:" in out
    assert "--json" in out


def test_errors_are_one_line_and_exit_code_2(trained, folder, tmp_path, call):
    (tmp_path / "bad.png").write_text("x")
    (tmp_path / "mixed" / "dark").mkdir(parents=True)
    (tmp_path / "mixed" / "dark" / "a.png").write_text("x")
    good = folder / "dark" / "00.png"
    (tmp_path / "mixed" / "dark" / "b.png").write_bytes(good.read_bytes())
    (tmp_path / "there.csv").write_text("precious")
    cases = [
        (["fit", "--data", tmp_path / "none", "--out", tmp_path / "o"], "no folder"),
        (["fit", "--data", folder / "dark", "--out", tmp_path / "o"], "class folder"),
        (["fit", "--data", folder, "--out", trained], "not empty"),
        (["fit", "--data", folder, "--out", tmp_path / "o", "--exits", "layer9"], "Did you mean"),
        (["fit", "--data", folder, "--out", tmp_path / "o", "--exits", "layer3,layer1"], "order"),
        (["fit", "--data", folder, "--out", tmp_path / "o", "--epochs", "0"], "epochs"),
        (["fit", "--data", folder, "--out", tmp_path / "o", "--backbone", "resnet18"], "backbone"),
        (["fit", "--data", folder, "--out", tmp_path / "o", "--size", "-5"], "size"),
        (["bench", "--bundle", trained, "--batch-sizes", "1,x"], "batch-sizes"),
        (["bench", "--bundle", trained, "--batch-sizes", "64"], "--batch-sizes: the smallest is 64"),
        (["calibrate", "--bundle", trained], "--max-accuracy-drop"),
        (["calibrate", "--bundle", trained, "--max-accuracy-drop", "2"], r"in \[0, 1\]"),
        (["calibrate", "--bundle", tmp_path, "--max-cost", "0.5"], "no bundle"),
        (["predict", "--bundle", trained, "--data", tmp_path / "bad.png"], "1 of 1 files"),
        (["predict", "--bundle", trained, "--data", tmp_path / "mixed"], "--skip-bad"),
        (["predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "there.csv"], "exists"),
        (["explain", "--bundle", trained, "--image", tmp_path / "bad.png"], "cannot be read"),
        (["evaluate", "--bundle", trained, "--data", "scenes"], "error"),
    ]
    for words, message in cases:
        code, _, err = call(*words)
        assert code == 2, words
        assert err.startswith("error:"), err
        assert __import__("re").search(message, err), (words, err)
        assert "Traceback" not in err
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert not (tmp_path / "o").exists()
    code, out, _ = call("predict", "--bundle", trained, "--data", tmp_path / "mixed", "--skip-bad", "--json")
    assert code == 0
    assert len(json.loads(out)["predictions"]) == 1
    assert "a.png" in json.loads(out)["bad"][0]


def test_a_bundle_without_policy_says_what_to_run(folder, tmp_path, call):
    code, *_ = call("fit", "--data", folder, "--out", tmp_path / "r", "--size", "32", "--epochs", "1", "--json")
    assert code == 0
    code, _, err = call("evaluate", "--bundle", tmp_path / "r")
    assert code == 2
    assert "exitlens calibrate" in err
    code, *_ = call("fit", "--data", folder, "--out", tmp_path / "r", "--size", "32", "--epochs", "1", "--resume")
    assert code == 0


def test_inspect_lists_places(call):
    code, out, _ = call("inspect", "--backbone", "small", "--size", "40", "--json")
    assert code == 0
    assert {"layer1", "layer2", "layer3"} <= {p["name"] for p in json.loads(out)["points"]}
    assert "layer2" in call("inspect", "--backbone", "small", "--size", "40")[1]


def test_demo_in_its_quick_form(tmp_path, call):
    code, out, err = call("demo", "--quick", "--out", tmp_path / "d", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert json.loads((tmp_path / "d" / "result.json").read_text()) == result
    for name in ("baseline", "egt"):
        for condition in ("agreeing", "disagreeing"):
            values = result[name][condition]
            assert len(values["accuracy"]) == len(values["deletion"]) == len(values["deletion_random"]) == 4
            assert (
                len(values["attention_cc"])
                == len(values["attention_cc_null"])
                == len(values["skill"])
                == len(values["kl"])
                == 3
            )
    for name in ("batch_1", "batch_64"):
        assert {"speedup", "accuracy_drop", "cost"} <= set(result["speed"][name])
    assert {"step_time_ratio", "seconds", "seed", "versions", "machine"} <= set(result)
    assert (tmp_path / "d" / "report.html").exists()
    code, *_ = call("explain", "--bundle", tmp_path / "d", "--image", _scene(tmp_path))
    assert code == 0
    code, _, err = call("demo", "--quick", "--out", tmp_path / "d")
    assert code == 2
    assert "finished demo" in err


def _scene(tmp_path: Path) -> Path:
    import exitlens as xl

    scene = xl.load_scenes("test", limit=1)
    path = tmp_path / "scene.png"
    Image.fromarray(scene.images[0].permute(1, 2, 0).numpy()).save(path)
    return path
