"""predict and explain on the command line: tables, files, interruptions, and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import exitlens as xl
from tests.data.conftest import write_tar


def test_predictions_as_a_table_and_as_a_file(trained, folder, tmp_path, call):
    out = call.ok("predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "p.csv", "--json")
    assert len(json.loads(out)["predictions"]) == 60
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert {row["label"] for row in rows} <= {"dark", "bright"}
    assert "samples, the first" in call("predict", "--bundle", trained, "--data", folder / "dark")[1]


@pytest.mark.slow
def test_an_explanation_as_a_table_and_as_files(trained, folder, tmp_path, call):
    image = folder / "dark" / "00.png"
    out = call.ok("explain", "--bundle", trained / "bundle", "--image", image, "--out", tmp_path / "why", "--json")
    assert json.loads(out)["label_name"] in ("dark", "bright")
    assert len(list((tmp_path / "why").glob("*.png"))) == 5
    assert "answered" in call("explain", "--bundle", trained, "--image", image)[1]
    code, out, err = call(
        "explain", "--bundle", trained, "--image", image, "--out", tmp_path / "dep", "--json", "--relevance"
    )
    assert code == 0, err
    assert json.loads(out)["relevance"]
    assert list((tmp_path / "dep").glob("*_relevance.png"))


@pytest.mark.slow
def test_what_predict_and_explain_refuse(trained, folder, tmp_path, call):
    (tmp_path / "bad.png").write_text("x")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_text("x")
    (tmp_path / "mixed" / "b.png").write_bytes((folder / "dark" / "00.png").read_bytes())
    (tmp_path / "there.csv").write_text("precious")
    cases = [
        (["predict", "--data", tmp_path / "bad.png"], "cannot be read as an image"),
        (["predict", "--data", tmp_path / "bad.png", "--skip-bad"], "1 of 1 files"),
        (["predict", "--data", tmp_path / "mixed"], "--skip-bad"),
        (["predict", "--data", folder, "--out", tmp_path / "there.csv"], "exists.*--resume"),
        (["predict", "--data", folder, "--out", tmp_path / "there.csv", "--resume"], "expected a file of pred"),
        (["predict", "--data", folder, "--out", tmp_path / "new.txt"], ".csv, .jsonl or .parquet"),
        (["predict", "--data", folder, "--resume"], "--out"),
        (["predict", "--data", folder, "--out", tmp_path / "p.csv", "--monitor", "--resume"], "leave --resume out"),
        (["predict", "--data", folder, "--group-by", "x"], "pass --monitor, too"),
        (["explain", "--image", tmp_path / "bad.png"], "cannot be read"),
        (["explain", "--image", tmp_path / "none.png"], r"expected a file, \S+none.png does not exist"),
        (["explain", "--image", folder], "is a folder. Fix: pass it as --data"),
        (["explain", "--image", tmp_path / "bad.png", "--data", folder], "one of --image"),
        (["explain", "--data", folder], "pass --out"),
        (["explain", "--data", folder, "--out", tmp_path / "w", "--relevance"], "relevance: it is for one sample"),
        (["explain", "--image", tmp_path / "bad.png", "--skip-bad"], "pass --data"),
        (["predict", "--data", folder, "--columns", "image=x"], "holds files of one image each, without columns"),
        (["predict", "--data", tmp_path / "none.csv"], "holds texts, the network takes images"),
    ]
    for words, message in cases:
        code, _, err = call(*words, "--bundle", trained)
        assert (code, err[:6]) == (2, "error:"), words
        assert re.search(message, err), (words, err)
        assert "Traceback" not in err
    assert (tmp_path / "there.csv").read_text() == "precious"
    out = call.ok("predict", "--bundle", trained, "--data", tmp_path / "mixed", "--skip-bad", "--json")
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


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_goes_on_after_ctrl_c(trained, folder, tmp_path, call, stop_at, suffix):
    words = ("predict", "--bundle", trained, "--data", folder, "--batch-size", 8, "--out")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"p{suffix}"
    shown = call.ok(*words, whole, "--json")
    assert _rows(whole) == json.loads(shown)["predictions"]
    assert [Path(row["file"]).name for row in _rows(whole)] == [f"{i:02}.png" for i in range(30)] * 2
    stop_at(KeyboardInterrupt(), 3)
    code, _, err = call(*words, out)
    assert code == 130
    assert err.replace("\n", "") == f"stopped: 16 rows are in {out}: the same command with --resume goes on"
    assert _rows(out) == _rows(whole)[:16]
    assert call(*words, out)[0] == 2
    again = call.ok(*words, out, "--resume", "--json")
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(again) == json.loads(shown)
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, out.name}
    assert "60 of them from before" in call(*words, out, "--resume")[1]


@pytest.mark.slow
def test_ctrl_c_without_a_file(trained, folder, call, stop_at):
    stop_at(KeyboardInterrupt(), 1)
    code, out, err = call("predict", "--bundle", trained, "--data", folder)
    assert code == 130
    assert "stopped: nothing was written" in err
    assert "samples" not in out


@pytest.mark.slow
def test_predict_is_not_resumed_with_another_policy_or_other_data(trained, folder, tmp_path, call, stop_at):
    shutil.copytree(trained, tmp_path / "x")
    out = tmp_path / "p.csv"
    words = ("predict", "--bundle", tmp_path / "x", "--batch-size", 8, "--out", out)
    stop_at(KeyboardInterrupt(), 2)
    assert call(*words, "--data", folder)[0] == 130
    before = out.read_bytes()
    assert "begun with another input" in call.error(*words, "--data", folder / "dark", "--resume")
    net, policy = xl.load(tmp_path / "x" / "bundle")
    xl.save(net, dataclasses.replace(policy, thresholds=(0.9, 0.9, 0.9)), tmp_path / "x" / "bundle", overwrite=True)
    assert "begun with another policy" in call.error(*words, "--data", folder, "--resume")
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(2)
    xl.save(net, dataclasses.replace(policy, network=""), tmp_path / "x" / "bundle", overwrite=True)
    assert "begun with another network" in call.error(*words, "--data", folder, "--resume")
    assert out.read_bytes() == before


@pytest.mark.slow
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
        assert f"36 rows are in {tmp_path / 'p.csv'}: the same command with --resume --skip-bad goes on" in err
        out = call.ok(*words, "--resume", "--skip-bad", "--json")
        assert len(json.loads(out)["bad"]) == 1
    assert len(_rows(tmp_path / "p.csv")) == 60
    assert call(*words, "--resume", "--skip-bad")[0] == 0  # complete: the bad image is skipped again, nothing changes


@pytest.mark.slow
def test_explaining_a_folder(trained, folder, tmp_path, call):
    words = ("explain", "--bundle", trained, "--data", folder, "--out", tmp_path / "why")
    out = call.ok(*words, "--json")
    found = json.loads(out)["explanations"]
    assert len(found) == 60
    assert [line["disagrees"] for line in found] == sorted((line["disagrees"] for line in found), reverse=True)
    assert {p.name for p in (tmp_path / "why").iterdir()} == {"explanations.csv", "contact_sheet.png", "manifest.json"}
    assert "exists" in call.error(*words)
    shown = call.ok(*words[:-1], tmp_path / "again")
    assert "what deserves a look first" in " ".join(shown.split())


@pytest.fixture
def shards(folder, tmp_path):
    """The images of the folder, two patients in each shard of 30."""
    for shard, name in enumerate(("dark", "bright")):
        members = []
        for i in range(30):
            members += [(f"{i:02}.png", (folder / name / f"{i:02}.png").read_bytes())]
            members += [(f"{i:02}.json", json.dumps({"patient": f"{name} {i // 15}"}).encode())]
        write_tar(tmp_path / "shards" / f"{shard}.tar", members)
    return tmp_path / "shards"


@pytest.mark.slow
def test_shards_are_predicted_like_files_and_go_on_after_ctrl_c(trained, folder, shards, tmp_path, call, stop_at):
    expected = call.json("predict", "--bundle", trained, "--data", folder)["predictions"]
    words = ("predict", "--bundle", trained, "--data", shards, "--batch-size", 8, "--out", tmp_path / "p.csv")
    stop_at(KeyboardInterrupt(), 3)
    assert call(*words)[0] == 130
    call.ok(*words, "--resume")
    found = {Path(row["file"]).relative_to(shards).as_posix(): row["label"] for row in _rows(tmp_path / "p.csv")}
    other = {"dark": "0.tar", "bright": "1.tar"}
    files = [Path(row["file"]) for row in expected]
    assert found == {
        f"{other[f.parent.name]}/{f.name}": row["label"]
        for f, row in sorted(zip(files, expected, strict=True), key=lambda pair: other[pair[0].parent.name])
    }
    code, shown, _ = call("predict", "--bundle", trained, "--data", shards, "--monitor", "--group-by", "patient", "--json")
    drift = json.loads(shown)["drift"]
    assert (code, drift["samples"], drift["groups"]) == (0, 60, 4)
    shown = call.ok("explain", "--bundle", trained, "--data", shards, "--out", tmp_path / "why", "--json")
    assert {line["file"] for line in json.loads(shown)["explanations"]} == {f"{shards}/{name}" for name in found}


@pytest.mark.slow
def test_tables_are_predicted_by_row_or_key(trained, folder, tmp_path, call, monkeypatch):
    hf = pytest.importorskip("datasets")
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = sorted(folder.rglob("*.png"))[::10]
    images = [{"bytes": path.read_bytes(), "path": None} for path in files]
    images[2] = {"bytes": b"no image", "path": None}
    features = hf.Features({"scan": hf.Image(), "id": hf.Value("string")})
    table = hf.Dataset.from_dict({"scan": images, "id": list("abcdef")}, features=features)
    table.to_parquet(str(tmp_path / "x.parquet"))
    words = ("predict", "--bundle", trained, "--data", tmp_path / "x.parquet", "--skip-bad")
    found = call.json(*words)
    assert [row["file"] for row in found["predictions"]] == [f"{tmp_path}/x.parquet:{i}" for i in (0, 1, 3, 4, 5)]
    assert found["bad"][0].startswith(f"{tmp_path}/x.parquet:2: cannot be read as an image")
    named = call.json(*words, "--columns", "key=id")["predictions"]
    assert [row["file"] for row in named] == list("abdef")
    assert [row["label"] for row in named] == [row["label"] for row in found["predictions"]]


@pytest.mark.slow
def test_the_watch(trained, folder, call):
    shown = call.ok("predict", "--bundle", trained, "--data", folder, "--monitor", "--json")
    drift = json.loads(shown)["drift"]
    assert drift["samples"] == 60
    assert sum(drift["exit_shares"]) == pytest.approx(1)
    assert "drift" in call.ok("predict", "--bundle", trained, "--data", folder, "--monitor")


@pytest.mark.slow
def test_the_table_has_estimates_only_where_there_is_a_gate(trained, folder, tmp_path, call):
    out = call.ok("predict", "--bundle", trained, "--data", folder, "--out", tmp_path / "p.csv")
    assert "divergence_estimate" not in out
    assert str(folder / "bright" / "00.png") in out  # in one piece
    assert (tmp_path / "p.csv").read_text().startswith("file,label,exit,confidence,divergence_estimate\n")  # as ever
