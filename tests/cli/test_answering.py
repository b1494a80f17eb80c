from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
import time
from functools import partialmethod
from pathlib import Path

import pytest
import torch

import exitlens as xl
from exitlens.delivery import demo, explanations
from exitlens.delivery.bundle import replace_policy
from exitlens.delivery.demo import DemoSettings
from exitlens.delivery.explorer import interface
from exitlens.serving.models import open_bundle
from exitlens.serving.settings import Adapting, Batching, Limits, ServerSettings, Watching
from tests.data.conftest import write_tar
from tests.hub import open_hub


@pytest.mark.slow
def test_predictions_as_a_table_and_as_a_file(trained, folder, tmp_path, call):
    words = ("predict", "--bundle", trained, "--data")
    found = call.json(*words, folder, "--out", tmp_path / "p.csv")
    exits = [row["exit"] for row in found["predictions"]]
    assert (len(exits), found["samples"]) == (60, 60)
    assert found["exit_shares"] == [exits.count(k) / 60 for k in range(4)]
    assert found["confidence"] == pytest.approx(sum(row["confidence"] for row in found["predictions"]) / 60)
    assert found["cost"] == pytest.approx(xl.load(trained)[0].cost[exits].mean().item())
    written = (tmp_path / "p.csv").read_text()
    assert written.startswith("file,label,exit,confidence,trust\n")
    assert {row["label"] for row in csv.DictReader(written.splitlines())} <= {"dark", "bright"}
    shown = call.ok(*words, folder, "--monitor")
    assert "samples, the first" in shown
    assert re.search(r"│ exit 0 +│ [01]\.\d+", shown)
    assert re.search(r"\n60 samples answered: exit 0 [\d.]+ %, .*, final [\d.]+ %; mean cost [\d.]+, mean confidence", shown)
    assert "drift" in shown
    assert "trust" not in shown  # there is no gate
    assert str(folder / "bright" / "00.png") in shown  # in one piece
    adapted = call.json(*words, folder, "--adapt", 0.5, "--audit", 0.4)["adaptive"]
    assert (adapted["taken"], adapted["open"], len(adapted["thresholds"])) == (60, 0, 3)
    assert 0 < adapted["audited"] < 60
    assert re.search(
        r"audits of 60 samples, their\s+losses add up to \d+", call.ok(*words, folder, "--adapt", 0.5, "--audit", 0.4)
    )
    run = shutil.copytree(trained, tmp_path / "run")
    replace_policy(run, xl.Policy.never(4), "never")
    shown = call.ok("predict", "--bundle", run, "--data", folder, "--policy", "never")
    assert re.search(r"│ final +│ [01]\.\d+", shown)
    assert "60 samples answered: exit 0 0.0 %, exit 1 0.0 %, exit 2 0.0 %, final 100.0 %; mean cost 1." in shown


@pytest.mark.slow
def test_what_was_learnt_goes_on_and_can_be_replayed(trained, folder, tmp_path, call):
    words = "--bundle", trained, "--data", folder, "--adapt", 0.5, "--audit", 0.4, "--state", tmp_path / "state"
    first = call.json("predict", *words)["adaptive"]
    second = call.json("predict", *words)["adaptive"]
    assert (first["taken"], second["taken"]) == (60, 120)
    shown = call.json("replay", "--log", tmp_path / "state", "--bundle", trained, "--out", tmp_path / "day.svg")
    assert shown["observed"] >= second["audited"] > 0
    assert [row["name"] for row in shown["rows"]] == ["as it was", "default", "best in hindsight"]
    assert (tmp_path / "day.svg").read_text().startswith("<?xml")
    assert "other answers, %" in call.ok("replay", "--log", tmp_path / "state", "--bundle", trained)
    with_none = call.error("replay", "--log", tmp_path / "state", "--bundle", trained, "--since", "2999-01-01")
    assert "expected 2 observed samples or more in this" in with_none
    run = shutil.copytree(trained, tmp_path / "run")
    replace_policy(run, xl.Policy((0.5, 0.5, 0.5), "margin"), "other")
    assert "policies whose scores were not logged: other" in call.ok("replay", "--log", tmp_path / "state", "--bundle", run)


@pytest.mark.slow
def test_an_explanation_as_a_table_and_as_files(trained, folder, tmp_path, call):
    words = ("explain", "--bundle", trained, "--image", folder / "dark" / "00.png")
    assert call.json(*words, "--out", tmp_path / "why")["label_name"] in ("dark", "bright")
    assert len(list((tmp_path / "why").glob("*.png"))) == 5
    assert "answered" in call.ok(*words)
    assert call.json(*words, "--out", tmp_path / "dep", "--relevance")["relevance"]
    assert list((tmp_path / "dep").glob("*_relevance.png"))


@pytest.mark.slow
def test_what_predict_and_explain_refuse(trained, folder, tmp_path, call):
    (tmp_path / "bad.png").write_text("x")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_text("x")
    (tmp_path / "mixed" / "b.png").write_bytes((folder / "dark" / "00.png").read_bytes())
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "texts.csv").write_text("text\na good lamp\n")
    cases = [
        (["predict", "--data", tmp_path / "bad.png"], "cannot be read as an image"),
        (["predict", "--data", tmp_path / "bad.png", "--skip-bad"], "1 of 1 files"),
        (["predict", "--data", tmp_path / "mixed"], "--skip-bad"),
        (["predict", "--data", folder, "--out", tmp_path / "there.csv"], "exists.*--resume"),
        (["predict", "--data", folder, "--resume"], "--out"),
        (["predict", "--data", folder, "--out", tmp_path / "p.csv", "--monitor", "--resume"], "leave --resume out"),
        (["predict", "--data", folder, "--out", tmp_path / "p.csv", "--adapt", 0.1, "--resume"], "adapt: it has to see all"),
        (["predict", "--data", folder, "--monitor", "--adapt", 0.1], "leave --monitor or --adapt out"),
        (["predict", "--data", folder, "--state", tmp_path], "state: it is for thresholds that adapt"),
        (["predict", "--data", folder, "--adapt", 0.02], "adapt: 60 samples are too few for a limit of 0.02"),
        (["predict", "--data", folder, "--group-by", "x"], "pass --monitor, too"),
        (["explain", "--image", tmp_path / "bad.png"], "cannot be read"),
        (["explain", "--image", tmp_path / "none.png"], r"expected a file, \S+none.png does not exist"),
        (["explain", "--image", folder], "is a folder. Fix: pass it as --data"),
        (["explain"], "one of --image FILE, --text TEXT"),
        (["explain", "--text", " "], "not empty"),
        (["explain", "--image", tmp_path / "bad.png", "--data", folder], "one of --image"),
        (["explain", "--data", folder], "pass --out"),
        (["explain", "--data", folder, "--out", tmp_path / "w", "--relevance"], "relevance: it is for one sample"),
        (["explain", "--data", folder, "--out", tmp_path / "w", "--to", folder], "to: it is for one sample"),
        (["explain", "--image", tmp_path / "bad.png", "--skip-bad"], "pass --data"),
        (["predict", "--data", folder, "--columns", "image=x"], "holds files of one image each, without columns"),
        (["predict", "--data", tmp_path / "none.csv"], "none.csv cannot be read .FileNotFoundError"),
        (["predict", "--data", tmp_path / "texts.csv"], "holds texts, the network takes images"),
    ]
    for words, message in cases:
        assert re.search(message, call.error(*words, "--bundle", trained)), words
    assert (tmp_path / "there.csv").read_text() == "precious"
    found = call.json("predict", "--bundle", trained, "--data", tmp_path / "mixed", "--skip-bad")
    assert len(found["predictions"]) == 1
    assert "a.png" in found["bad"][0]


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
    rows = csv.DictReader(path.read_text().splitlines())
    numbers = {"exit": int, "confidence": float, "trust": lambda word: float(word) if word else None}
    return [row | {name: read(row[name]) for name, read in numbers.items()} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_goes_on_after_ctrl_c(trained, folder, tmp_path, call, stop_at, suffix):
    words = ("predict", "--bundle", trained, "--data", folder, "--batch-size", 8, "--out")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"p{suffix}"
    found = call.json(*words, whole)
    assert _rows(whole) == found["predictions"]
    assert [Path(row["file"]).name for row in _rows(whole)] == [f"{i:02}.png" for i in range(30)] * 2
    stop_at(KeyboardInterrupt(), 3)
    code, _, err = call(*words, out)
    assert code == 130
    assert err.replace("\n", "") == f"stopped: 16 rows are in {out}: the same command with --resume goes on"
    assert _rows(out) == _rows(whole)[:16]
    assert call(*words, out)[0] == 2
    others = ("predict", "--bundle", trained, "--data", folder / "dark", "--out", out, "--resume")
    assert "begun with another input" in call.error(*others)
    assert call.json(*words, out, "--resume") == found
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, out.name}
    assert "60 of them from before" in call(*words, out, "--resume")[1]


@pytest.mark.slow
def test_ctrl_c_without_a_file(trained, folder, call, stop_at):
    stop_at(KeyboardInterrupt(), 1)
    code, out, err = call("predict", "--bundle", trained, "--data", folder)
    assert (code, out) == (130, "")
    assert "stopped: nothing was written" in err


@pytest.mark.slow
@pytest.mark.parametrize("skip_bad", [True, False])
def test_bad_images_on_the_way(trained, folder, tmp_path, call, skip_bad):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "dark" / "05[x].png").write_text("not an image")
    words = ("predict", "--bundle", trained, "--data", tmp_path / "images", "--batch-size", 8, "--out", tmp_path / "p.csv")
    if skip_bad:
        out = call.ok(*words, "--skip-bad")
        assert "60 samples, the first 20" in out
        assert "skipped" in out
        assert "05[x].png" in out.replace("\n", "")
    else:
        err = call.error(*words)
        assert "05[x].png: cannot be read as an image" in err
        assert "pass --skip-bad" in err
        assert f"36 rows are in {tmp_path / 'p.csv'}: the same command with --resume --skip-bad goes on" in err
        assert len(call.json(*words, "--resume", "--skip-bad")["bad"]) == 1
    assert len(_rows(tmp_path / "p.csv")) == 60
    assert call(*words, "--resume", "--skip-bad")[0] == 0  # complete: the bad image is skipped again, nothing changes


@pytest.mark.slow
def test_explaining_a_folder(trained, folder, tmp_path, call, monkeypatch):
    words = ("explain", "--bundle", trained, "--data", folder / "dark", "--out", tmp_path / "why")
    found = call.json(*words)["explanations"]
    assert len(found) == 30
    assert [line["disagrees"] for line in found] == sorted((line["disagrees"] for line in found), reverse=True)
    assert {p.name for p in (tmp_path / "why").iterdir()} == {"explanations.csv", "contact_sheet.png", "manifest.json"}
    assert "exists" in call.error(*words)
    monkeypatch.setattr("exitlens.progress.INTERVAL", 0.001)
    draw = explanations.draw_contact_sheet
    monkeypatch.setattr(explanations, "draw_contact_sheet", lambda *args, **given: time.sleep(0.1) or draw(*args, **given))
    code, shown, progress = call(*words[:-1], tmp_path / "again")
    assert code == 0
    assert "what deserves a look first" in " ".join(shown.split())
    assert "drawing what deserves a look: 0:00:00 so far" in progress  # to the very end
    with (tmp_path / "again" / "explanations.csv").open() as file:
        assert all(-1 <= float(row["cc_null"]) <= 1 for row in csv.DictReader(file))


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
    drift = call.json("predict", "--bundle", trained, "--data", shards, "--monitor", "--group-by", "patient")["drift"]
    assert sum(drift["exit_shares"]) == pytest.approx(1)
    assert (drift["samples"], drift["groups"]) == (60, 4)
    lines = call.json("explain", "--bundle", trained, "--data", shards, "--out", tmp_path / "why")["explanations"]
    assert {line["file"] for line in lines} == {f"{shards}/{name}" for name in found}


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


VALUES = {
    "accuracy": [0.5, 0.75],
    "skill": [0.25],
    "binding": [0.75, 0.625],
    "binding_another": [0.375, 0.25],
    "cue_swap": [0.5, 0.25],
    "deletion": [0.5, 0.25],
    "deletion_random": [0.125, 0.0],
    "deletion_share": [0.5, None],
}
SPEED = {"speedup": 2.0, "accuracy_drop": 0.005, "cost": 0.5}
CONDITIONS = {"agreeing": VALUES, "disagreeing": VALUES | {"accuracy": [0.125, 0.25]}}
RESULT = {
    "egt": CONDITIONS,
    "baseline": CONDITIONS,
    "speed": {"batch_1": SPEED | {"speedup": 0.83, "accuracy_drop": -0.006}, "batch_64": SPEED | {"speedup": 3.0}},
    "seconds": 7.0,
}


@pytest.fixture
def asked(monkeypatch):
    """What the demo was asked for; it takes no time."""
    found = []
    monkeypatch.setattr(demo, "run_demo", lambda out, settings, **how: found.append((out, settings, how)) or RESULT)
    return found


def test_the_comparison_is_printed(asked, tmp_path, call):
    out = call.ok("demo", "--out", tmp_path / "d", "--seed", 3, "--resume")
    assert asked == [(tmp_path / "d", DemoSettings(3), {"resume": True, "quiet": False})]
    out = " ".join(out.split())
    assert "12.5" in out
    assert "0.50 (0.12)" in out
    assert "0.75 (0.38)" in out
    assert "batch size 1: 0.83 times as fast as the plain backbone, 0.60 points more accurate, cost 0.50" in out
    assert "batch size 64: 3.00 times as fast as the plain backbone, 0.50 points less accurate, cost 0.50" in out
    assert "7 s" in out


@pytest.mark.parametrize(("option", "settings"), [("--quick", DemoSettings.quick(0)), ("--full", DemoSettings.full(0))])
def test_other_forms_and_json(option, settings, asked, tmp_path, call):
    assert call.json("demo", option, "--out", tmp_path / "d") == RESULT
    assert asked == [(tmp_path / "d", settings, {"resume": False, "quiet": True})]
    assert "got both" in call.error("demo", "--quick", "--full")


@pytest.mark.parametrize("words", [["demo", "--quick"], ["fit", "--data", "scenes"], ["fit", "--data", "fashion"]])
def test_without_the_images_one_line_names_the_extra_and_nothing_is_written(words, tmp_path, call, no_images):
    err = call.error(*words, "--out", tmp_path / "d")
    assert err.startswith("error: a data set of garments")
    assert "pip install 'exitlens[demo]'" in err
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_it_serves_both_runs_on_the_port(trained, call, monkeypatch):
    served = []
    monkeypatch.setattr(
        interface, "serve", lambda explorer, *, port, ready: (served.append((explorer.runs, port)), ready("http://x"))
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    out = call.ok("app", "--bundle", trained, "--compare", trained, "--port", 7000)
    assert "Open http://x" in out
    [(runs, port)] = served
    assert [run.name for run in runs] == ["x", "x (2)"]
    assert port == 7000


@pytest.fixture
def several(trained, tmp_path, files_written_once):
    """A copy of the run's bundle with a second policy, which uses the first exit alone."""
    net, _ = xl.load(trained / "bundle")
    own, fast = xl.Policy.never(net.num_exits), xl.Policy((0.5, *[math.inf] * (net.num_exits - 2)))
    shutil.copy(trained / "data.json", tmp_path / "data.json")
    return xl.save(net, own, tmp_path / "bundle", policies={"fast": fast})


@pytest.mark.slow
def test_policies_go_along(several, tmp_path, call):
    policies = xl.load_policies(several)
    assert "policies.json" in call.json("export", "--bundle", several, "--out", tmp_path / "e")["bytes"]
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert [segment["exit"] for segment in manifest["segments"]] == [0, policies["fast"].num_exits - 1]
    assert json.loads((tmp_path / "e" / "policies.json").read_text()) == {"fast": policies["fast"].to_dict()}
    call.ok("export", "--bundle", several, "--out", tmp_path / "f", "--policy", "fast")
    assert xl.Policy.from_dict(json.loads((tmp_path / "f" / "policy.json").read_text())) == policies["fast"]


@pytest.mark.slow
def test_a_page_and_int8_have_one(several, tmp_path, call, monkeypatch):
    taken = []

    def export_web(net, policy, out, **_):
        taken.append(policy)
        out.mkdir()
        return out

    monkeypatch.setattr("exitlens.edge.web.export_web", export_web)
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "w", "--web")
    assert "without the policies fast: it has one alone (--policy)" in " ".join(out.split())
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "v", "--web", "--policy", "fast")
    assert "without" not in out
    policies = xl.load_policies(several)
    assert taken == [policies["default"], policies["fast"]]


@pytest.mark.slow
def test_a_model_for_another_server(several, tmp_path, call):
    files = call.json("export", "--bundle", several, "--out", tmp_path / "net", "--for", "triton", "--policy", "fast")[
        "bytes"
    ]
    assert {"config.pbtxt", "1/model.py", "1/edge/manifest.json", "requirements.txt"} <= files.keys()
    edge = tmp_path / "net" / "1" / "edge"
    assert xl.Policy.from_dict(json.loads((edge / "policy.json").read_text())) == xl.load_policies(several)["fast"]
    call.ok("export", "--bundle", edge, "--out", tmp_path / "other", "--for", "mlserver", "--policy", "fast")
    settings = json.loads((tmp_path / "other" / "model-settings.json").read_text())
    assert settings["parameters"]["extra"]["policy"] == "fast"


def test_a_place_for_a_model_is_refused_before_the_export(several, tmp_path, call, monkeypatch):
    monkeypatch.setattr("exitlens.delivery.run_directory.load_calibrated", None)
    (tmp_path / "net").mkdir()
    for out, words in ((tmp_path / "net", "exists"), (tmp_path / "My net", "rename it")):
        code, _, message = call("export", "--bundle", several, "--out", out, "--for", "triton")
        assert code
        assert words in message


@pytest.fixture
def served(monkeypatch):
    """The settings that the server was started with."""
    found = []
    monkeypatch.setattr("exitlens.serving.server.serve", found.append)
    return found


def test_the_defaults_are_those_of_the_settings(call, served):
    call.ok("serve", "--bundle", "runs/demo")
    assert served == [ServerSettings({"demo": Path("runs/demo")})]


def test_every_option_arrives(call, served, tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("")
    (tmp_path / "token").write_text("secret\n")
    words = "--bundle a=x --bundle y/b --host 0.0.0.0 --port 0 --workers 2 --threads 3 --batch 8 --max-delay-ms 5"
    words += " --max-waiting 10 --max-wait-ms 250 --max-body-mb 1.5 --max-pixels 1000 --max-batch 4 --timeout 7"
    words += f" --max-connections 9 --token-file {tmp_path / 'token'} --tls-cert {tmp_path / 'cert'}"
    words += f" --tls-key {tmp_path / 'key'} --reload-seconds 0 --no-access-log --no-drift --unready-on-drift --shadow 0.25"
    words += f" --adapt 0.02 --loss divergence --audit 0.05 --warm-up 9000 --state {tmp_path / 'state'} --propose"
    call.ok("serve", *words.split())
    (asked,) = served
    assert asked.bundles == {"a": Path("x"), "b": Path("y/b")}
    assert asked.batching == Batching(8, 5, 10, 250, 3)
    assert asked.watching == Watching(drift=False, shadow=0.25, unready_on_drift=True)
    adapting = Adapting(0.02, "divergence", 0.05, 9000, tmp_path / "state", propose=True)
    limits = Limits(1.5, request_seconds=7, max_connections=9, max_pixels=1000, max_batch=4, token="secret")
    server = ("0.0.0.0", 0, 2), (0, False, tmp_path / "cert", tmp_path / "key")
    assert asked == ServerSettings(asked.bundles, *server[0], asked.batching, asked.watching, adapting, limits, *server[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bundle", "a=x", "--bundle", "y/a"), "two models are called a"),
        (("--bundle", "x", "--tls-cert", "c"), "--tls-cert, --tls-key: expected both or neither"),
        (("--bundle", "x", "--timeout", "inf"), "request_seconds"),
        (("--bundle", "x", "--batch", "0"), "--batch: expected"),
        (("--bundle", "x", "--propose"), "they need adapt, got adapt=0"),
        (("--bundle", "x", "--max-wait-ms", "nan"), "--max-wait-ms"),
    ],
)
def test_settings_that_are_refused(call, served, words, message):
    assert message in call.error("serve", *words)
    assert served == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "cannot be read"),
        (b"two words", "token: expected printable ASCII"),
        ("käse".encode(), "token: expected printable ASCII"),
    ],
)
def test_tokens_that_are_refused(call, served, tmp_path, content, message):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    err = call.error("serve", "--bundle", "x", "--token-file", tmp_path / "token")
    assert message in err
    assert "words" not in err
    assert served == []


def test_a_bundle_that_is_missing_is_told_in_one_line(call, tmp_path):
    err = call.error("serve", "--bundle", tmp_path / "none", "--port", 0)
    assert err.startswith(f"error: bundle: expected a bundle or a run directory, got {tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("verb", "module"),
    [("app", "gradio"), *(("serve", name) for name in ("uvicorn", "starlette", "python_multipart", "prometheus_client"))],
)
def test_without_the_extra_it_says_what_to_install(call, tmp_path, monkeypatch, verb, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install 'exitlens[{verb}]'" in call.error(verb, "--bundle", tmp_path)


QUICK = ("--rounds", "1", "--seconds", "0")


@pytest.fixture(autouse=True)
def _little_is_timed(monkeypatch):
    monkeypatch.setattr("exitlens.model.cutting.placement.SECONDS", 0.0)
    monkeypatch.setattr("exitlens.model.engine.manager.MICRO_BATCHES", (1, 8))


@pytest.mark.slow
def test_tune_stores_what_it_found(trained, tmp_path, call, monkeypatch):
    monkeypatch.setattr(xl.ExitNet, "tune", partialmethod(xl.ExitNet.tune, seconds=0.1))
    bundle = shutil.copytree(trained, tmp_path / "run")
    words = ("tune", "--bundle", bundle, "--backend", "torch", "--samples", 16, "--precision")
    found = call.json(*words, "float32")
    assert found.pop("policy_kept")
    net, policy = xl.load(bundle)
    assert net.tuning == xl.Tuning(**found)
    assert policy is not None
    shown = call(*words, "bfloat16")[1]
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


@pytest.mark.slow
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
        ("export --out e --ort x", "ort: it is for the page"),
        ("export --out e --data x", "data: activations are measured for int8 only"),
        ("export --out e --int8 --web", "leave --int8 or --web out"),
        ("export --out e --web --for triton", "for: a server's model is made of an edge bundle"),
        ("export --out e --for nginx", "server: expected one of triton, mlserver, kserve, bentoml"),
        ("export --out e --policy slow", "none named 'slow'"),
        ("bench --batch-sizes 1,x", "batch-sizes"),
        ("bench --out there.json", "exists"),
        ("tune --precision half", "precision"),
    ],
)
def test_what_they_refuse(several, tmp_path, monkeypatch, call, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("precious")
    assert message in call.error(*words.split(), "--bundle", several)
    assert (tmp_path / "there.json").read_text() == "precious"
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_a_bundle_on_the_hub_is_named_by_its_address(trained, folder, tmp_path, call):
    on_disk = call.json("predict", "--bundle", trained, "--data", folder)
    with open_hub(tmp_path / "cache") as hub:
        address = call.json("push", trained, "user/name", "--private", "--message", "first")["address"]
        assert "hf://user/name@" in call.ok("push", trained, "user/name")
        assert hub.private == {"user/name"}
        assert call.json("predict", "--bundle", address, "--data", folder) == on_disk
        assert "accuracy" in call.ok("evaluate", "--bundle", "hf://user/name", "--data", folder)
        words = ["explain", "--bundle", "hf://user/name", "--image", folder / "dark" / "00.png", "--out", tmp_path / "why"]
        assert "exit" in call.ok(*words)
        assert call("cues", "--bundle", "hf://user/name", "--out", tmp_path / "cues.html")[0] == 2  # it has no data
        assert open_bundle("m", Path("hf://user/name")).policies == xl.load_policies(trained)
        assert "hf://user/name does not say which data it was trained on. Fix: pass --data." in call.error(
            "evaluate", "--bundle", "hf://user/name"
        )
        assert "check name and revision" in call.error("predict", "--bundle", "hf://user/none", "--data", folder)


@pytest.mark.parametrize("verb", ["calibrate", "certify", "tune"])
def test_a_bundle_on_the_hub_is_not_changed_there(verb, call):
    assert "hf://user/name is on the Hub and cannot be changed there. Fix: fetch a copy" in call.error(
        verb, "--bundle", "hf://user/name"
    )
