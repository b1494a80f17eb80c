import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.functional import calibration
from exitlens.functional.groups import Likeness
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.cutting import placement
from exitlens.types.settings import RECIPES
from exitlens.workflow import collection
from exitlens.workflow.training.callbacks import TrainingCallback
from exitlens.workflow.training.ignoring import pack_mask
from exitlens.workflow.training.run import TrainingRun


def time_equally(timer, tensors):
    return [1.0] * (1 + sum(node.target == timer.note_time for node in timer.module.graph.nodes))


@pytest.mark.slow
def test_exits_placed_by_time_stay_where_they_are_on_resume(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr("exitlens.model.cutting.placement.SECONDS", 0.0)
    monkeypatch.setattr("exitlens.model.cutting.placement.NodeTimer.time_parts", time_equally)
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--exits", "2", "--placement", "time", "--out")
    assert len(call.json(*words, tmp_path / "r")["accuracy"]) == 3
    at = xl.load(tmp_path / "r")[0].info.at
    monkeypatch.setattr(placement, "NodeTimer", lambda *args: pytest.fail("timed again"))
    call.ok(*words, tmp_path / "r", "--resume")
    assert xl.load(tmp_path / "r")[0].info.at == at


@pytest.mark.slow
def test_what_answers_rest_on_is_recorded_and_held_to(folder, tmp_path, call):
    Image.fromarray((np.eye(8) * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--rely-on", "map", "--out", tmp_path / "r")
    ignored = ("--ignore-mask", tmp_path / "mask.png", "--ignore-channels", "0, 1")
    assert call.json(*words, *ignored)["epochs"] == 1
    settings = json.loads((tmp_path / "r" / "settings.json").read_text())["settings"]
    assert settings["rely_on"] == "map"
    assert settings["ignore"] == {"background": False, "masks": [pack_mask(torch.eye(8))], "names": ["0", "1"]}
    assert "--ignore" in call.error(*words, "--resume")
    call.ok(*words, *ignored, "--resume")


@pytest.mark.slow
def test_a_run_teaches_another(folder, tmp_path, call):
    fit = ("fit", "--data", folder, "--size", 16, "--exits", 1, "--epochs", 1, "--out")
    call.ok(*fit, tmp_path / "a")
    call.ok(*fit, tmp_path / "b", "--teacher", tmp_path / "a")
    record = json.loads((tmp_path / "b" / "settings.json").read_text())["settings"]
    assert record["teacher"] == xl.load(tmp_path / "a")[0].fingerprint()
    assert "expected a bundle or a run directory" in call.error(*fit, tmp_path / "c", "--teacher", tmp_path / "none")


@pytest.mark.slow
def test_policies_of_a_network_that_is_trained_on_are_left_out(folder, tmp_path, call):
    words = ("fit", "--data", folder, "--size", "32", "--out", tmp_path / "r", "--epochs")
    call.ok(*words, "1", "--json")
    net, _ = xl.load(tmp_path / "r")
    own = xl.Policy((0.5,) * (net.num_exits - 1), network=net.identity())
    xl.save(net, own, tmp_path / "r" / "bundle", policies={"fast": own}, overwrite=True)
    out = call.ok(*words, "1", "--resume")  # there is nothing left to train
    assert f"{tmp_path / 'r'}: the weights of epoch 1 of 1\n" in out
    assert f"next: exitlens calibrate --bundle {tmp_path / 'r'} --max-accuracy-drop 0.02 --folds 5\n" in out
    assert "left out" not in out
    assert xl.load_policies(tmp_path / "r") == {"default": own, "fast": own}
    record = tmp_path / "r" / "settings.json"
    record.write_text(record.read_text().replace('"epochs": 1', '"epochs": 2'))
    out = call.ok(*words, "2", "--resume")
    assert "policies left out, which were chosen for the network as it was before: default, fast" in " ".join(out.split())
    assert xl.load_policies(tmp_path / "r") == {}


@pytest.mark.slow
def test_a_stopped_run_says_how_to_go_on_and_does(folder, tmp_path, call, monkeypatch):
    words = ("fit", "--data", folder, "--size", "32", "--batch-size", "21", "--epochs", "2", "--out", tmp_path / "r")
    save, rows = TrainingRun.save, []

    def stop(run, row):
        if rows:
            raise KeyboardInterrupt
        rows.append(row)
        save(run, row)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "save", stop)
        code, _, err = call(*words)
    assert code == 130
    assert err == f"stopped: after epoch 1 of 2; go on with: exitlens {' '.join(map(str, words))} --resume\n"
    more = [*words[:8], "3", *words[9:], "--resume"]
    out = call.ok(*more)
    assert "epochs: 3, 2 before" in out
    assert "the weights of epoch 3 of 3" in out
    err = call.error(*words, "--resume", "--batch-size", "20")
    assert "--batch-size was 21, is now 20" in err
    assert "--epochs was 3, is now 2" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "none"), "no file or folder none. Fix: give a folder"),
        (("--data", "images/dark"), "class folder"),
        (("--exits", "layer9"), "error: --exits: the backbone has no module 'layer9' on its path. Did you mean"),
        (("--epochs", "0"), "epochs"),
        (("--backbone", "resnet18"), "backbone"),
        (("--size", "-5"), "size"),
        (("--init-weights", "none.pt"), "no file none.pt"),
        (("--out", "images"), "not empty"),
        (("--cache-features",), "--freeze-backbone"),
        (("--rely-on", "maps"), "--rely-on: expected one of ('anything', 'map'), got 'maps'. Did you mean 'map'?"),
        (("--ignore", "background"), "'background' needs the masks of the training data"),
        (("--ignore-mask", "none.png"), "none.png: cannot be read"),
        (("--data", "motifs", "--mel", "8"), "mel: it is for sounds, motifs has series"),
        (("--data", "blobs", "--columns", "label=a"), "they are for data from files"),
        (("--data", "motifs", "--backbone", "torchvision:resnet18"), "torchvision:resnet18 does not take series"),
        (("--data", "x.csv", "--columns", "features=a|z,label=c"), "no column 'z' for the features"),
        (("--data", "x.csv"), "several columns could hold the label"),
        (("--tracker", "wandb"), "pip install 'exitlens[wandb]'"),
    ],
)
def test_what_fit_refuses_leaves_nothing(folder, tmp_path, monkeypatch, call, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "images").symlink_to(folder)
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    assert message in call.error("fit", "--data", "images", "--out", "o", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "x.csv"}


@pytest.mark.slow
def test_a_tracker_is_told_and_what_it_prints_is_not_in_the_json(folder, tmp_path, call, monkeypatch):
    class Talkative(TrainingCallback):
        def on_end(self, end):
            print(f"View run {end.status}")

    monkeypatch.setattr("exitlens.trackers.MLflowTracker", Talkative)
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--tracker", "mlflow", "--json", "--out")
    code, out, err = call(*words, tmp_path / "r")
    assert (code, json.loads(out)["epochs"]) == (0, 1)
    assert "View run finished" in err


@pytest.mark.long
@pytest.mark.slow
def test_bad_files_and_the_cache(folder, tmp_path, call):
    own, out = shutil.copytree(folder, tmp_path / "own"), tmp_path / "r"
    for path in sorted((own / "dark").glob("*.png"))[:12]:
        path.write_text("no image")

    def count_cached():  # without what a reading process that was ended in the midst of a file left
        return len([path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name[0] != "."])

    # two batches of 21 are all 42 training images: of images left over, only those would be read that were looked at ahead
    words = ("fit", "--data", own, "--size", "32", "--epochs", "1", "--batch-size", "21", "--out", out, "--workers", "2")
    err = call.error(*words)
    assert "cannot be read as an image" in err
    assert "--skip-bad" in err
    bad = call.json(*words, "--skip-bad", "--cache", tmp_path / "cache", "--resume")["bad"]
    assert bad
    assert all("own/dark" in reason for reason in bad)
    assert count_cached() == 42 + 6 - len(bad)  # training and validation
    for verb in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):
        line = (*verb, "--bundle", out, "--data", own, "--cache", tmp_path / "cache", "--skip-bad")
        assert len(call.json(*line)["bad"]) == 12
    assert count_cached() == 60 - 12
    assert "skipped" in call(*line)[1]
    assert "in memory" in call("evaluate", "--bundle", out, "--data", "scenes", "--cache", tmp_path / "cache")[2]
    assert len(call.json("report", out, "--data", own, "--skip-bad", "--out", tmp_path / "report.html")["bad"]) == 12
    assert "without 12 that cannot be read" in (tmp_path / "report.html").read_text()
    bad_parts = set()
    for verb in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):  # the run remembers it, for its own data
        bad_parts |= set(call.json(*verb, "--bundle", out)["bad"])
    assert bad_parts
    assert bad_parts <= set(call.json("predict", "--bundle", out, "--data", own)["bad"])
    shown = call.ok("explain", "--bundle", out, "--data", own, "--out", tmp_path / "why")
    assert "left out, because they cannot be read: 12" in shown
    call.ok("report", out, "--out", tmp_path / "own.html")
    call.ok(*words, "--resume")


@pytest.mark.slow
def test_groups_stay_together_and_come_along(folder, tmp_path, call):
    words = ("--data", folder, "--group-by", r"\d(\d)\.png$")
    out = call.ok("fit", *words, "--size", "32", "--epochs", "1", "--batch-size", "16", "--out", tmp_path / "r")
    assert "splits: by exitlens: 70% train, 10% validation, 10% calibration, 10% test" in out
    assert r"groups by '\d(\d)\.png$': 10, of which 7 in train, 1 in validation" in " ".join(out.split())
    assert "images of 2 classes (" in out
    assert "no two samples are in one group" not in out
    assert json.loads((tmp_path / "r" / "data.json").read_text())["group_by"] == r"\d(\d)\.png$"
    out = call.ok("calibrate", "--bundle", tmp_path / "r", "--max-accuracy-drop", "0.5", *words, "--json")
    call.ok("evaluate", "--bundle", tmp_path / "r", "--json")
    err = call.error("evaluate", "--bundle", tmp_path / "r", "--group-by", "x")
    assert "error: --columns, --group-by: they are for other data" in err
    err = call.error("fit", "--data", folder, "--group-by", r"x(\d)", "--out", tmp_path / "s")
    assert "finds no group in 60 of 60 file names" in err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_weights_for_other_classes_are_said_and_bring_the_pretrained_recipe(folder, tmp_path, call):
    state = {f"module.{name}": value for name, value in SmallResNet(num_classes=7).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--init-weights", tmp_path / "w.pt", "--out")
    out = call.ok(*words, tmp_path / "a", "--layer-decay", "0.9")
    assert "found under 'state_dict'; prefix 'module.' dropped" in out
    assert "the classifier is made anew, for the classes of the data: fc.weight (2, 128), in the source (7, 128)" in out
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())["settings"]
    assert settings["head_learning_rate"] == RECIPES["pretrained"].head_learning_rate
    assert settings["layer_decay"] == 0.9
    others = ("--recipe", "scratch", "--learning-rate", "1e-3", "--json", "--normalise", "half")
    _, out, err = call(*words, tmp_path / "b", *others)
    assert json.loads(out)["epochs"] == 1
    assert "made anew" in err
    assert "pixels: mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (0.5 and 0.5, as asked for)" in err
    assert xl.load(tmp_path / "b")[0].info.preprocess == xl.data.Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    settings = json.loads((tmp_path / "b" / "settings.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["head_learning_rate"]) == (1e-3, None)
    assert "does not fit this backbone" in call.error(*words, tmp_path / "c", "--strict-weights")
    assert "expected one of ('scratch', 'pretrained')" in call.error(*words, tmp_path / "d", "--recipe", "best")


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the run, to store other policies in."""
    net, policy = xl.load(trained / "bundle")
    xl.save(net, policy, tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.slow
def test_a_certificate_from_an_unlabelled_folder_in_groups_and_its_trace(again, folder, tmp_path, call):
    words = ("calibrate", "--bundle", again, "--unlabelled", folder, "--max-disagreement", "0.5", "--delta", "0.2")
    found = call.json(*words)
    assert found["calibration"]["certification"]["delta"] == 0.2
    assert found["calibration"]["samples"] == 60
    assert "confidence" in found["certificate"]
    assert found["temperatures"] == [1.0] * 4
    assert xl.load(again)[1].certificate() == found["certificate"]
    more = ("--group-by", r"\d(\d)\.png$", "--trace-dir", tmp_path / "t", "--compact", "--cache", tmp_path / "pixels")
    assert "confidence" in " ".join(call.ok(*words, *more).split())
    assert xl.load(again)[1].calibration.groups == 10
    trace = xl.Trace.load(tmp_path / "t" / "trace.safetensors")
    assert (len(trace), trace.num_groups, trace.labels) == (60, 10, None)
    assert isinstance(trace.logits, xl.types.CompactLogits)
    assert len([path for path in (tmp_path / "pixels").rglob("*") if path.is_file()]) == 60


@pytest.mark.slow
def test_a_gate_and_the_column_it_fills(again, folder, call):
    shown = call.ok("calibrate", "--bundle", again, "--data", folder, "--max-disagreement", "0.3", "--gate")
    assert "gate: thresholds are on its trust" in " ".join(shown.split())
    assert xl.load(again)[1].gate is not None
    rows = call.json("predict", "--bundle", again, "--data", folder)["predictions"]
    assert all(0 <= row["trust"] <= 1 for row in rows)
    shown = call.ok("explain", "--bundle", again, "--image", next(folder.rglob("*.png")))
    assert "same as final" in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("always")
def test_samples_that_look_alike_are_told_and_no_other_warning_is_lost(again, folder, call, monkeypatch):
    def find_them_alike(_):
        warnings.warn("of a library", UserWarning, stacklevel=2)
        return Likeness(1, 0.2, 30.0)

    monkeypatch.setattr(calibration, "measure_likeness", find_them_alike)
    words = ("calibrate", "--bundle", again, "--unlabelled", folder, "--max-disagreement", "0.5", "--delta", "0.2")
    shown = call.ok(*words)
    assert "warning: trace: samples of one answer that follow one another look alike" in " ".join(shown.split())
    of_a_library, told = call.json(*words)["warnings"]
    assert of_a_library == "of a library"
    assert "name the groups" in told
    assert "--equal-groups: this trace names no groups" in call.error(*words, "--equal-groups")


def test_a_plan_without_a_network(call):
    shown = call.ok("plan", "--max-disagreement", "0.05")
    assert "75 independent samples if early answers lose nothing" in " ".join(shown.split())
    assert "out: they go with a network. Fix: pass --bundle" in call.error(
        "plan", "--max-disagreement", "0.05", "--out", "x.svg"
    )


@pytest.mark.slow
def test_a_plan_from_the_calibration_split_leaves_it_unspent(again, folder, tmp_path, call):
    words = ("plan", "--bundle", again, "--data", folder, "--max-disagreement", "0.5", "--draws", "2")
    planned = call.json(*words, "--out", tmp_path / "plan.png")
    assert planned["at_hand"] == 60
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert not list(again.rglob("certificate_requests.json"))


@pytest.mark.slow
def test_policies_by_name(again, folder, call):
    own = xl.load(again)[1]
    words = ("calibrate", "--bundle", again, "--data", folder)
    found = call.json(*words, "--max-cost", "0.3", "--name", "fast")
    fast = xl.load_policies(again)["fast"]
    assert found["thresholds"] == fast.to_dict()["thresholds"]
    assert xl.load_policies(again) == {"default": own, "fast": fast}
    assert call(*words, "--max-disagreement", "0.0")[0] == 0  # a new one of its own, and the other stays
    strict = xl.load_policies(again)["default"]
    assert xl.load_policies(again) == {"default": strict, "fast": fast}
    assert strict != own
    net = xl.load(again)[0]
    xl.save(net, xl.Policy.never(net.num_exits), again, policies={"fast": fast}, overwrite=True)
    words = ("evaluate", "--bundle", again, "--data", folder, "--policy")
    costs = [call.json(*words, name)["cost"] for name in ("", "default", "fast")]
    assert costs[0] == costs[1] > costs[2]
    rows = call.json("predict", "--bundle", again, "--data", folder, "--policy", "fast")["predictions"]
    assert min(row["exit"] for row in rows) < net.num_exits - 1
    why = call.json("explain", "--bundle", again, "--image", next(folder.rglob("*.png")), "--policy", "fast")
    assert why["exits"][0]["threshold"] == fast.to_dict()["thresholds"][0]
    assert "none named 'slow', but ['default', 'fast']" in call.error(*words, "slow")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max-accuracy-drop 0.1 --unlabelled IMAGES", "labels"),
        ("--max-disagreement 0.1 --data scenes --unlabelled IMAGES", "data, unlabelled: expected one"),
        ("--max-disagreement 0.1 --root x --unlabelled IMAGES", "data, unlabelled: expected one"),
        ("--max-accuracy-drop 0.1 --data EMPTY", "has no class folder (bright, dark"),
    ],
)
def test_data_that_it_refuses(again, folder, tmp_path, call, words, message):
    (tmp_path / "empty").mkdir()
    words = words.replace("IMAGES", str(folder)).replace("EMPTY", str(tmp_path / "empty")).split()
    assert message in call.error("calibrate", "--bundle", again, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--delta", "0.1"), "limits: expected at least one"),
        (("--max-divergence", "2"), "--max-divergence: expected a number in [0, 1]"),
        (("--max-cost", "1", "--name", "Fast"), "name: expected names of 1 to 40 characters"),
        (("--max-cost", "1", "--name", "default"), "name: 'default' is what the bundle's own policy is called"),
        (("--max-ms", "5"), "--max-ms: it is about measured time. Fix: pass --cost time, too."),
    ],
)
def test_a_request_is_checked_before_anything_is_read(tmp_path, call, words, message):
    assert message in call.error("calibrate", "--bundle", tmp_path / "nothing", *words)


@pytest.mark.slow
def test_two_runs_in_one_report(trained, folder, tmp_path, call, monkeypatch):
    ms = (1.0, 2.0, 4.0, 8.0)
    timing = xl.types.ExitLatency(ms, ms, ms, 7.5, 64, 1, {"processor": "Slow 9000"})
    monkeypatch.setattr(collection, "measure_exits", lambda *words: timing)
    page = tmp_path / "both.html"
    data = ("--data", folder, "--group-by", r"\d\d\.png$", "--cost", "time", "--timed-batch", "64")
    assert call.json("report", trained, "--compare", trained, *data, "--out", page)["out"] == str(page)
    text = page.read_text()
    assert text.count(str(trained)) > 3
    assert f"exitlens report {trained} --compare {trained} --data {folder} --group-by" in text
    assert "--cost time --timed-batch 64" in text
    assert text.count("batches of 64 on Slow 9000, 1 thread") == 2
    assert "loss distance js" in text
    assert "exists" in call.error("report", trained, "--out", page)


@pytest.mark.slow
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
    assert "calibration error of the routed answers on these samples: " in shown
    assert f"next: exitlens evaluate --bundle {again} (or predict --data DATA, explain --image FILE" in shown


@pytest.mark.slow
def test_cues_as_a_table_and_a_page(again, folder, call, tmp_path):
    words = ("cues", "--bundle", again, "--data", folder, "--donors", "1", "--samples", "40")
    shown = call.ok(*words, "--out", tmp_path / "cues.html")
    assert "87 parts tried, 12 tested on 30 samples with 1 donors each" in shown
    assert "beyond the final exit" in (tmp_path / "cues.html").read_text()
    result = call.json(*words, "--least", "0.9")
    assert (result["cues"], result["tried"], result["bad"]) == ([], 87, [])
    assert "exists" in call.error(*words, "--out", tmp_path / "cues.html")


@pytest.mark.slow
def test_a_limit_on_what_backgrounds_change_and_a_promise_of_binding(again, folder, call):
    words = ("--bundle", again, "--data", folder)
    limited = call.json("calibrate", *words, "--max-cue-drop", "0.5")
    assert limited["calibration"]["request"]["max_cue_drop"] == 0.5
    assert "with another sample's background, answers change" in call.ok("evaluate", *words, "--swapped", "40")
    assert "data: the policy was calibrated on some of these samples" in call.error("certify", *words)
    call.ok("calibrate", "--bundle", again, "--unlabelled", folder / "dark", "--max-cue-drop", "0.5")
    assert "data: the policy was calibrated on some of these samples" in call.error("certify", *words)
    new = ("--bundle", again, "--unlabelled", folder / "bright")
    shown = call.ok("certify", *new, "--area", "0.4", "--delta", "0.2", "--samples", "60")
    assert "The top 40 % of a map decides at least" in " ".join(shown.split())
    assert "answers that stayed %" in shown
    _, policy = xl.load(again)
    assert policy.binding.samples == 30
    assert policy.describe_binding(0).startswith("The top 40 % of a map decides at least")


@pytest.mark.slow
def test_a_cascade_of_two_runs(again, folder, call, tmp_path):
    both = tmp_path / "both"
    words = ("cascade", "--member", f"small={again}", "--member", f"large={again}", "--out", both)
    shown = call.ok(*words)
    net, _ = xl.load(again)
    count = net.num_exits
    assert f"2 networks, {2 * count} exits" in " ".join(shown.split())
    chained, policy = xl.load(both)
    assert (chained.info.at[count - 1], policy) == ("small", None)
    images = torch.rand(3, *net.info.input_shape)
    assert torch.equal(chained(images)[count - 1].logits, net(images)[-1].logits)
    assert torch.equal(chained(images)[-1].logits, net(images)[-1].logits)
    call.ok("calibrate", "--bundle", both, "--data", folder, "--max-disagreement", "0.2")
    assert "cost" in call.ok("evaluate", "--bundle", both, "--data", folder)
    call.ok("report", both, "--data", folder, "--out", tmp_path / "both.html")
    assert "exists" in call.error(*words)
    for wrong in (("small",), (f"a={again}", f"a={again}"), ("=x", "b=y")):
        parts = [part for member in wrong for part in ("--member", member)]
        assert "member: expected NAME=BUNDLE, each name once" in call.error("cascade", *parts, "--out", tmp_path / "x")
    assert "members: expected a list of two networks or more" in call.error(
        "cascade", "--member", f"a={again}", "--out", tmp_path / "x"
    )


@pytest.mark.slow
def test_requests_for_certificates_are_counted_across_processes(again, folder, call):
    words = ["calibrate", "--bundle", again, "--unlabelled", folder, "--delta", "0.1", "--max-disagreement"]
    out = call.ok(*words, "0.001")
    assert "spent a level of 0.1 on this" in " ".join(out.split())
    call.ok(*words, "0.001")
    assert "delta: these samples refused a certificate before" in call.error(*words, "0.002")
    words[6] = "0.15"
    found = call.json(*words, "0.3")["calibration"]["certification"]
    assert (found["request_number"], round(found["level"], 6)) == (2, 0.05)
    assert len(json.loads((again / "certificate_requests.json").read_text())) == 1


@pytest.mark.slow
def test_limits_in_milliseconds(again, folder, call, monkeypatch):
    ms, sizes = (1.0, 2.0, 4.0, 8.0), []

    def measure(net, inputs, size):
        sizes.append(size)
        return xl.types.ExitLatency(ms, ms, ms, 7.5, size or 64, 1, {"processor": "Slow 9000"})

    monkeypatch.setattr(collection, "measure_exits", measure)
    timed = ("--bundle", again, "--data", folder, "--cost", "time", "--timed-batch", "1")
    record = call.json("calibrate", *timed, "--max-ms", "4", "--percentile", "90")["calibration"]
    assert (record["request"]["max_ms"], record["request"]["percentile"], record["timing"]["ms"]) == (4, 90, list(ms))
    out = call.ok("calibrate", *timed, "--max-ms", "4")
    assert "ms at the exits, single samples on Slow 9000, 1 thread" in " ".join(out.split())
    out = call.ok("evaluate", *timed)
    assert "exit ms cost accuracy" in " ".join(out.split())
    assert sizes == [1, 1, 1]
    assert "even the first exit takes 1 ms" in call.error("calibrate", *timed, "--max-ms", "0.5")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["1", "0"])
def test_an_exit_that_answers_everything_is_told_and_what_else_to_do(again, folder, call, limit):
    words = ("calibrate", "--bundle", again, "--data", folder)
    shown = call.ok(*words, "--max-disagreement", limit, "--max-divergence", "1")
    told = [line for line in shown.splitlines() if line.startswith("exit 0 answers everything: ")]
    assert len(told) == (limit == "1")
    for line in told:
        assert " % are right at exit 0, " in line
        assert line.endswith("; longer training (fit --epochs) or more data may change that")
    assert "Calibrate with --folds 5 for limits that other samples keep, or with --delta 0.1 for a certificate." in shown
    assert "exit 0 answers" not in call(*words, "--max-cost", "1")[1]  # a budget may be the reason
    shown = call.ok(*words, "--max-disagreement", limit, "--folds", "3")
    assert "by cross-validation in 3 folds, each routed by what the others chose" in " ".join(shown.split())
    assert xl.load(again)[1].calibration.request.folds == 3
