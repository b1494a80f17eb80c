"""The verbs as a user types them, in this process; one test starts the real command."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens import cli
from exitlens.delivery.predictions import file as predictions
from exitlens.model.cutting import placement

QUICK = ("--rounds", "1", "--seconds", "0")


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
    out = call("bench", "--bundle", trained, "--samples", "4", *QUICK, "--batch-sizes", "1,2", "--json")[1]
    assert [one["batch"] for one in json.loads(out)["batches"]] == [1, 2]


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


def test_tables_for_people(trained, folder, tmp_path, call):
    assert "threshold" in call("calibrate", "--bundle", trained, "--max-cost", "0.9")[1]
    assert "routed" in call("evaluate", "--bundle", trained, "--report", tmp_path / "r.html", "--baseline", trained)[1]
    assert (tmp_path / "r.html").stat().st_size > 10_000
    assert "samples, the first" in call("predict", "--bundle", trained, "--data", folder / "dark")[1]
    assert "answered" in call("explain", "--bundle", trained, "--image", folder / "dark" / "01.png")[1]
    assert "tuned: see exitlens tune" in call("bench", "--bundle", trained, *QUICK, "--batch-sizes", "1")[1]
    assert "routed" in call("evaluate", "--bundle", trained, "--data", folder)[1]


VERBS = ["demo", "fit", "calibrate", "evaluate", "predict", "explain", "inspect", "tune", "bench"]


@pytest.mark.parametrize("verb", VERBS)
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
        (["bench", "--bundle", trained, "--out", tmp_path / "there.csv"], "exists"),
        (["tune", "--bundle", trained, "--precision", "half"], "precision"),
        (["calibrate", "--bundle", trained], "--max-accuracy-drop"),
        (["calibrate", "--bundle", trained, "--max-accuracy-drop", "2"], r"in \[0, 1\]"),
        (["calibrate", "--bundle", tmp_path, "--max-cost", "0.5"], "no bundle"),
        (["predict", "--bundle", trained, "--data", tmp_path / "bad.png"], "cannot be read as an image"),
        (["predict", "--bundle", trained, "--data", tmp_path / "bad.png", "--skip-bad"], "1 of 1 files"),
        (["predict", "--bundle", trained, "--data", tmp_path / "mixed"], "--skip-bad"),
        (["predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "there.csv"], "exists.*--resume"),
        (["predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "there.csv", "--resume"], "no file of pred"),
        (["predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "new.txt"], ".csv, .jsonl or .parquet"),
        (["predict", "--bundle", trained, "--data", folder, "--resume"], "--out"),
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


@pytest.fixture
def stop_at(monkeypatch):
    """Raises an error in place of the n-th batch's answer, once."""

    def install(error: BaseException, number: int) -> None:
        original, done = xl.predict_stream, []

        def predict(*args, **kwargs):
            for pred in original(*args, **kwargs):
                done.append(pred)
                if len(done) == number:
                    raise error
                yield pred

        monkeypatch.setattr(xl, "predict_stream", predict)

    return install


def _rows(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow").parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows = csv.DictReader(path.read_text().splitlines())
    numbers = {"exit": int, "confidence": float, "divergence_estimate": lambda word: float(word) if word else None}
    return [row | {name: read(row[name]) for name, read in numbers.items()} for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_goes_on_after_ctrl_c(trained, folder, tmp_path, call, stop_at, suffix):
    words = ("predict", "--bundle", trained, "--data", folder, "--batch-size", 8, "--out")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"p{suffix}"
    code, shown, _ = call(*words, whole, "--json")
    assert code == 0
    assert _rows(whole) == json.loads(shown)["predictions"]
    assert [Path(row["file"]).name for row in _rows(whole)] == [f"{i:02}.png" for i in range(30)] * 2
    stop_at(KeyboardInterrupt(), 3)
    code, _, err = call(*words, out)
    assert code == 130
    assert err.replace("\n", "") == f"stopped: 16 rows are in {out}: the same command with --resume goes on"
    assert _rows(out) == _rows(whole)[:16]
    assert call(*words, out)[0] == 2
    code, again, _ = call(*words, out, "--resume", "--json")
    assert code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(again) == json.loads(shown)
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, out.name}
    assert "60 of them from before" in call(*words, out, "--resume")[1]


def test_ctrl_c_without_a_file(trained, folder, call, stop_at):
    stop_at(KeyboardInterrupt(), 1)
    code, out, err = call("predict", "--bundle", trained, "--data", folder)
    assert code == 130
    assert "stopped: nothing was written" in err
    assert "samples" not in out


def test_predict_is_not_resumed_with_another_policy_or_other_data(trained, folder, tmp_path, call, stop_at):
    shutil.copytree(trained, tmp_path / "x")
    out = tmp_path / "p.csv"
    words = ("predict", "--bundle", tmp_path / "x", "--batch-size", 8, "--out", out)
    stop_at(KeyboardInterrupt(), 2)
    assert call(*words, "--data", folder)[0] == 130
    before = out.read_bytes()
    code, _, err = call(*words, "--data", folder / "dark", "--resume")
    assert code == 2
    assert "begun with another input" in err
    net, policy = xl.load(tmp_path / "x" / "bundle")
    xl.save(net, dataclasses.replace(policy, thresholds=(0.9, 0.9, 0.9)), tmp_path / "x" / "bundle", overwrite=True)
    code, _, err = call(*words, "--data", folder, "--resume")
    assert code == 2
    assert "begun with another policy" in err
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(2)
    xl.save(net, dataclasses.replace(policy, network=""), tmp_path / "x" / "bundle", overwrite=True)
    code, _, err = call(*words, "--data", folder, "--resume")
    assert code == 2
    assert "begun with another network" in err
    assert out.read_bytes() == before


@pytest.mark.parametrize("skip_bad", [True, False])
def test_bad_images_on_the_way(trained, folder, tmp_path, call, skip_bad):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "dark" / "05[x].png").write_text("not an image")
    words = ("predict", "--bundle", trained, "--data", tmp_path / "images", "--batch-size", 8, "--out", tmp_path / "p.csv")
    code, out, err = call(*words, *["--skip-bad"] * skip_bad)
    if skip_bad:
        assert code == 0
        assert "60 samples, the first 20" in out
        assert "skipped" in out
        assert "05[x].png" in out.replace("\n", "")
    else:
        assert code == 2
        assert "05[x].png: cannot be read as an image" in err
        assert "pass --skip-bad" in err
        assert f"36 rows are in {tmp_path / 'p.csv'}: the same command with --resume goes on" in err
        code, out, _ = call(*words, "--resume", "--skip-bad", "--json")
        assert code == 0
        assert len(json.loads(out)["bad"]) == 1
    assert len(_rows(tmp_path / "p.csv")) == 60
    assert call(*words, "--resume", "--skip-bad")[0] == 0  # complete: the bad image is skipped again, nothing changes


def test_a_full_disk_is_an_error_that_says_what_is_safe(trained, folder, tmp_path, call, monkeypatch):
    words = ("predict", "--bundle", trained, "--data", folder, "--batch-size", 8, "--out", tmp_path / "p.csv")
    write = predictions.PredictionFile._write

    def full(file, content):
        if file.count == 16:
            write(file, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(predictions.PredictionFile, "_write", full)
        code, _, err = call(*words)
    assert code == 2
    assert "No space left on device" in err
    assert f"16 rows are in {tmp_path / 'p.csv'}: the same command with --resume goes on" in err
    assert len(_rows(tmp_path / "p.csv")) == 16
    assert call(*words, "--resume")[0] == 0
    assert len({row["file"] for row in _rows(tmp_path / "p.csv")}) == 60


def test_parquet_without_pyarrow(trained, folder, tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = call("predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "p.parquet")
    assert code == 2
    assert "pip install 'exitlens[parquet]'" in err


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


def test_inspect_marks_what_cost_and_time_would_choose(call):
    words = ("inspect", "--backbone", "small", "--size", "40")
    found = json.loads(call(*words, "--exits", "2", "--json")[1])
    assert found["exits"] == 2
    marked = {by: [p["name"] for p in found["points"] if by in p["chosen_by"]] for by in ("cost", "time")}
    assert [len(names) for names in marked.values()] == [2, 2]
    assert marked["cost"] == list(xl.attach("small", 2, 10, torch.zeros(1, 3, 40, 40)).info.at)
    assert "3 chosen by" in " ".join(call(*words)[1].split())
    assert "99 exits do not fit" in call(*words, "--exits", "99")[1]


def test_exits_placed_by_time_stay_where_they_are_on_resume(folder, tmp_path, call, monkeypatch):
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--exits", "2", "--by", "time", "--json", "--out")
    code, out, err = call(*words, tmp_path / "r")
    assert code == 0, err
    assert len(json.loads(out)["accuracy"]) == 3
    at = xl.load(tmp_path / "r" / "bundle")[0].info.at
    monkeypatch.setattr(placement, "time_shares", lambda *args: pytest.fail("timed again"))
    code, _, err = call(*words, tmp_path / "r", "--resume")
    assert code == 0, err
    assert xl.load(tmp_path / "r" / "bundle")[0].info.at == at


def test_by_needs_a_number_of_exits(folder, tmp_path, call):
    words = ("fit", "--data", folder, "--size", "32", "--out", tmp_path / "n", "--by")
    assert "only with a number in at" in call(*words, "time", "--exits", "layer1")[2]
    assert "placement: expected 'cost'" in call(*words, "speed", "--exits", "2")[2]
    assert not (tmp_path / "n").exists()


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
    scene = xl.load_scenes("test", limit=1)
    path = tmp_path / "scene.png"
    Image.fromarray(scene.images[0].permute(1, 2, 0).numpy()).save(path)
    return path


def test_explaining_a_folder(trained, folder, tmp_path, call):
    words = ("explain", "--bundle", trained, "--data", folder, "--out", tmp_path / "why")
    code, out, _ = call(*words, "--json")
    assert code == 0
    found = json.loads(out)["explanations"]
    assert len(found) == 60
    assert [line["disagrees"] for line in found] == sorted((line["disagrees"] for line in found), reverse=True)
    assert {p.name for p in (tmp_path / "why").iterdir()} == {"explanations.csv", "contact_sheet.png", "manifest.json"}
    code, _, err = call(*words)
    assert code == 2
    assert "exists" in err
    code, shown, _ = call(*words[:-1], tmp_path / "again")
    assert code == 0
    assert "what deserves a look first" in " ".join(shown.split())


def test_explain_takes_one_thing_and_says_what_is_missing(trained, folder, tmp_path, call):
    image = folder / "dark" / "00.png"
    for words, message in (
        (["--image", image, "--data", folder], "one of --image"),
        (["--data", folder], "pass --out"),
        (["--image", image, "--skip-bad"], "--data FOLDER"),
    ):
        code, _, err = call("explain", "--bundle", trained, *words)
        assert code == 2
        assert message in " ".join(err.split())


def test_two_runs_in_one_report(trained, tmp_path, call):
    page = tmp_path / "both.html"
    code, out, err = call("report", trained, trained, "--out", page, "--json")
    assert code == 0, err
    assert json.loads(out)["out"] == str(page)
    text = page.read_text()
    assert text.count(str(trained)) > 3
    assert f"exitlens report {trained} {trained}" in text
    assert "loss distance js" in text
    code, _, err = call("report", trained, "--out", page)
    assert code == 2
    assert "exists" in err
