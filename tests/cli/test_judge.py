"""calibrate, evaluate and report on the command line."""

import json

import pytest

import exitlens as xl
from exitlens.functional.groups import Likeness
from exitlens.workflow import calibration, collection


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the run, to store other policies in."""
    net, policy = xl.load(trained / "bundle")
    xl.save(net, policy, tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.slow
def test_a_certificate_from_an_unlabelled_folder(again, folder, call):
    words = ("calibrate", "--bundle", again, "--unlabelled", folder, "--max-disagreement", "0.5", "--delta", "0.2")
    shown = call.ok(*words, "--json")
    found = json.loads(shown)
    assert found["calibration"]["certification"]["delta"] == 0.2
    assert found["calibration"]["samples"] == 60
    assert "confidence" in found["certificate"]
    assert found["temperatures"] == [1.0] * 4
    policy = xl.load(again)[1]
    assert policy.certificate() == found["certificate"]
    shown = call.ok(*words)
    assert "confidence" in " ".join(shown.split())


@pytest.mark.slow
def test_an_unlabelled_folder_in_groups_and_its_trace(again, folder, tmp_path, call):
    words = ("calibrate", "--bundle", again, "--unlabelled", folder, "--max-disagreement", "0.5", "--delta", "0.2")
    more = ("--group-by", r"\d(\d)\.png$", "--trace-dir", tmp_path / "t", "--compact", "--cache", tmp_path / "pixels")
    shown = call.ok(*words, *more, "--json")
    assert json.loads(shown)["calibration"]["groups"] == 10
    trace = xl.Trace.load(tmp_path / "t" / "trace.safetensors")
    assert (len(trace), trace.num_groups, trace.labels) == (60, 10, None)
    assert isinstance(trace.logits, xl.types.CompactLogits)
    assert len([path for path in (tmp_path / "pixels").rglob("*") if path.is_file()]) == 60


@pytest.mark.slow
def test_a_gate_and_the_column_it_fills(again, folder, call):
    words = ("calibrate", "--bundle", again, "--data", folder, "--max-divergence", "0.5", "--gate", "--json")
    shown = call.ok(*words)
    gate = json.loads(shown)["gate"]
    net, policy = xl.load(again)
    if gate is None:  # every map is near enough: the simpler rule; here one is made by hand
        gate = xl.types.Gate(((0.0, 0.0, 0.0, 0.25),) * 3, (1.0,) * 3)
        xl.save(net, xl.Policy(policy.thresholds, network=policy.network, gate=gate), again, overwrite=True)
    shown = call.ok("predict", "--bundle", again, "--data", folder, "--json")
    rows = json.loads(shown)["predictions"]
    assert all(0 <= row["divergence_estimate"] <= 1 for row in rows)
    shown = call.ok("explain", "--bundle", again, "--image", next(folder.rglob("*.png")))
    assert "(limit" in shown


@pytest.mark.slow
def test_samples_that_look_alike_are_told(again, folder, call, monkeypatch):
    monkeypatch.setattr(calibration, "measure_likeness", lambda _: Likeness(1, 0.2, 30.0))
    words = ("calibrate", "--bundle", again, "--unlabelled", folder, "--max-disagreement", "0.5", "--delta", "0.2")
    shown = call.ok(*words)
    assert "warning: trace: samples of one answer that follow one another look alike" in " ".join(shown.split())
    (told,) = call.json(*words)["warnings"]
    assert "name the groups" in told
    assert "--equal-groups: this trace names no groups" in call.error(*words, "--equal-groups")


@pytest.mark.slow
def test_policies_by_name(again, folder, call):
    own = xl.load(again)[1]
    words = ("calibrate", "--bundle", again, "--data", folder, "--json")
    shown = call.ok(*words, "--max-cost", "0.3", "--name", "fast")
    fast = xl.load_policies(again)["fast"]
    assert json.loads(shown)["thresholds"] == fast.to_dict()["thresholds"]
    assert xl.load_policies(again) == {"default": own, "fast": fast}
    assert call(*words, "--max-disagreement", "0.0")[0] == 0  # a new one of its own, and the other stays
    strict = xl.load_policies(again)["default"]
    assert xl.load_policies(again) == {"default": strict, "fast": fast}
    assert strict != own
    net, costs = xl.load(again)[0], []
    xl.save(net, xl.Policy.never(net.num_exits), again, policies={"fast": fast}, overwrite=True)
    for name in ("", "default", "fast"):
        shown = call.ok("evaluate", "--bundle", again, "--data", folder, "--policy", name, "--json")
        costs.append(json.loads(shown)["cost"])
    assert costs[0] == costs[1] > costs[2]
    shown = call.ok("predict", "--bundle", again, "--data", folder, "--policy", "fast", "--json")
    assert min(row["exit"] for row in json.loads(shown)["predictions"]) < net.num_exits - 1
    shown = call.ok("explain", "--bundle", again, "--image", next(folder.rglob("*.png")), "--policy", "fast", "--json")
    assert [one["threshold"] for one in json.loads(shown)["exits"]][:1] == [fast.to_dict()["thresholds"][0]]
    assert "none named 'slow', but ['default', 'fast']" in call.error(
        "evaluate", "--bundle", again, "--data", folder, "--policy", "slow"
    )


@pytest.mark.slow
def test_class_folders_without_images(again, tmp_path, call):
    (tmp_path / "empty").mkdir()
    assert "has no image in a class folder (bright, dark" in call.error(
        "calibrate", "--bundle", again, "--data", tmp_path / "empty", "--max-accuracy-drop", "0.1"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--delta", "0.1"), "limits: expected at least one"),
        (("--delta", "0.1", "--max-cost", "0.5"), "delta: it certifies limits on risks"),
        (("--delta", "2", "--max-disagreement", "0.1"), "delta: expected a number between 0 and 1"),
        (("--gate", "--max-disagreement", "0.1"), "pass --max-divergence, too"),
        (("--max-accuracy-drop", "0.1", "--unlabelled"), "labels"),
        (("--max-disagreement", "0.1", "--data", "scenes", "--unlabelled"), "data, unlabelled: expected one"),
        (("--max-disagreement", "0.1", "--root", "x", "--unlabelled"), "data, unlabelled: expected one"),
        (("--max-disagreement", "0.1", "--group-by", "(x)", "--unlabelled"), "group-by: '(x)' finds no group in 60 of 60"),
        (
            ("--max-disagreement", "0.1", "--columns", "image=x", "--unlabelled"),
            "columns: IMAGES holds files of one image each, without",
        ),
    ],
)
def test_what_it_refuses(again, folder, call, words, message):
    if words[-1] == "--unlabelled":
        words = (*words, folder)
    elif "--data" not in words:
        words = (*words, "--data", folder)
    assert message.replace("IMAGES", str(folder)) in call.error("calibrate", "--bundle", again, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "limits: expected at least one"),
        (("--max-divergence", "2"), "--max-divergence: expected a number in [0, 1]"),
        (("--max-divergence", "0.1", "--score", "sure"), "score: expected one of"),
        (("--max-cost", "1", "--name", "Fast"), "name: expected names of 1 to 40 characters"),
        (("--max-cost", "1", "--name", "default"), "name: 'default' is what the bundle's own policy is called"),
        (("--max-ms", "5"), "--max-ms: it is about measured time. Fix: pass --cost time, too."),
        (("--percentile", "5", "--max-cost", "1"), "percentile: it is the share"),
        (("--max-accuracy-drop", "0.1", "--gate"), "gate: it lowers the divergence"),
        (("--max-accuracy-drop", "0.1", "--delta", "0.1", "--folds", "5"), "folds: delta promises more"),
    ],
)
def test_a_request_is_checked_before_anything_is_read(tmp_path, call, words, message):
    assert message in call.error("calibrate", "--bundle", tmp_path / "nothing", *words)


@pytest.mark.slow
def test_a_bundle_without_policy_says_what_to_run(folder, tmp_path, call):
    call.ok("fit", "--data", folder, "--out", tmp_path / "r", "--size", "32", "--epochs", "1", "--json")
    assert "exitlens calibrate" in call.error("evaluate", "--bundle", tmp_path / "r")
    call.ok("fit", "--data", folder, "--out", tmp_path / "r", "--size", "32", "--epochs", "1", "--resume")


@pytest.mark.slow
def test_two_runs_in_one_report(trained, folder, tmp_path, call, monkeypatch):
    ms = (1.0, 2.0, 4.0, 8.0)
    timing = xl.types.ExitLatency(ms, ms, ms, 7.5, 64, 1, {"processor": "Slow 9000"})
    monkeypatch.setattr(collection, "measure_exits", lambda *words: timing)
    page = tmp_path / "both.html"
    data = ("--data", folder, "--group-by", r"\d\d\.png$", "--cost", "time", "--timed-batch", "64")
    out = call.ok("report", trained, "--compare", trained, *data, "--out", page, "--json")
    assert json.loads(out)["out"] == str(page)
    text = page.read_text()
    assert text.count(str(trained)) > 3
    assert f"exitlens report {trained} --compare {trained} --data {folder} --group-by" in text
    assert "--cost time --timed-batch 64" in text
    assert text.count("batches of 64 on Slow 9000, 1 thread") == 2
    assert "loss distance js" in text
    assert "exists" in call.error("report", trained, "--out", page)


def test_evaluate_and_calibrate_as_tables(again, folder, call):
    shown = call.ok("evaluate", "--bundle", again, "--data", folder)
    assert "routed" in shown
    assert "classes, the worst first" in shown
    result = call.json("evaluate", "--bundle", again, "--data", folder)
    assert len(result["exits"]) == 4
    assert result["class_names"] == ["bright", "dark"]
    assert [(row["label"], row["samples"]) for row in result["classes"]] == [(0, 30), (1, 30)]
    shown = call("calibrate", "--bundle", again, "--data", folder, "--max-cost", "0.9")[1]
    assert "threshold" in shown
    assert "answers the rest" in shown


@pytest.mark.slow
def test_limits_that_other_samples_keep(again, folder, call):
    words = ("calibrate", "--bundle", again, "--data", folder, "--max-disagreement", "0.2", "--folds", "3")
    assert "by cross-validation in 3 folds, each routed by what the others chose" in " ".join(call(*words)[1].split())
    assert call.json(*words)["calibration"]["request"]["folds"] == 3


@pytest.mark.slow
def test_askings_are_counted_across_processes(again, folder, call):
    words = ["calibrate", "--bundle", again, "--unlabelled", folder, "--delta", "0.1", "--max-disagreement"]
    out = call.ok(*words, "0.001")
    assert "spent a level of 0.1 on this" in " ".join(out.split())
    call.ok(*words, "0.001")
    assert "delta: these samples refused a certificate before" in call.error(*words, "0.002")
    words[6] = "0.15"
    found = call.json(*words, "0.3")["calibration"]["certification"]
    assert (found["asking"], round(found["level"], 6)) == (2, 0.05)
    assert len(json.loads((again / "askings.json").read_text())) == 1


@pytest.mark.slow
def test_limits_in_milliseconds(again, folder, call, monkeypatch):
    ms, sizes = (1.0, 2.0, 4.0, 8.0), []

    def measure(net, inputs, size):
        sizes.append(size)
        return xl.types.ExitLatency(ms, ms, ms, 7.5, size or 64, 1, {"processor": "Slow 9000"})

    monkeypatch.setattr(collection, "measure_exits", measure)
    timed = ("--bundle", again, "--data", folder, "--cost", "time", "--timed-batch", "1")
    out = call.ok("calibrate", *timed, "--max-ms", "4", "--percentile", "90", "--json")
    record = json.loads(out)["calibration"]
    assert (record["request"]["max_ms"], record["request"]["percentile"], record["timing"]["ms"]) == (4, 90, list(ms))
    out = call.ok("calibrate", *timed, "--max-ms", "4")
    assert "ms at the exits, single samples on Slow 9000, 1 thread" in " ".join(out.split())
    out = call.ok("evaluate", *timed)
    assert "exit ms cost accuracy" in " ".join(out.split())
    assert sizes == [1, 1, 1]
    assert "even the first exit takes 1 ms" in call.error("calibrate", *timed, "--max-ms", "0.5")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["1", "0"])
def test_an_exit_that_answers_everything_is_told(again, folder, call, limit):
    words = ("calibrate", "--bundle", again, "--data", folder, "--max-disagreement", limit, "--max-divergence", "1")
    shown = call.ok(*words)
    told = [line for line in shown.splitlines() if line.startswith("exit 0 answers everything: ")]
    assert len(told) == (limit == "1")
    for line in told:
        assert " % are right at exit 0, " in line
        assert line.endswith("; longer training (fit --epochs) or more data may change that")
    assert "exit 0 answers" not in call(*words, "--max-cost", "1")[1]  # a budget may be the reason
    assert "Calibrate with --folds 5 for limits that other samples keep, or with --delta 0.1 for a certificate." in shown
