"""fit on the command line."""

import json
import shutil

import pytest
import torch

import exitlens as xl
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.cutting import placement
from exitlens.types.settings import RECIPES
from exitlens.workflow.training.run import TrainingRun


def time_equally(timer, tensors):
    return [1.0] * (1 + sum(node.target == "exitlens_clock" for node in timer.module.graph.nodes))


@pytest.mark.slow
def test_exits_placed_by_time_stay_where_they_are_on_resume(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr("exitlens.model.cutting.placement.SECONDS", 0.0)
    monkeypatch.setattr("exitlens.model.cutting.placement.NodeTimer.time_parts", time_equally)
    words = ("fit", "--data", folder, "--size", "32", "--epochs", "1", "--exits", "2", "--placement", "time", "--out")
    out = call.ok(*words, tmp_path / "r", "--json")
    assert len(json.loads(out)["accuracy"]) == 3
    at = xl.load(tmp_path / "r")[0].info.at
    monkeypatch.setattr(placement, "NodeTimer", lambda *args: pytest.fail("timed again"))
    call.ok(*words, tmp_path / "r", "--resume")
    assert xl.load(tmp_path / "r")[0].info.at == at


@pytest.mark.slow
def test_policies_of_a_network_that_is_trained_on_are_left_out(folder, tmp_path, call):
    words = ("fit", "--data", folder, "--size", "32", "--out", tmp_path / "r", "--epochs")
    call.ok(*words, "1", "--json")
    net, _ = xl.load(tmp_path / "r")
    own = xl.Policy((0.5,) * (net.num_exits - 1), network=net.identity())
    xl.save(net, own, tmp_path / "r" / "bundle", policies={"fast": own}, overwrite=True)
    code, out, _ = call(*words, "1", "--resume")  # there is nothing left to train
    assert code == 0
    assert f"{tmp_path / 'r'}: the weights of epoch 1 of 1\n" in out
    assert f"next: exitlens calibrate --bundle {tmp_path / 'r'} --max-accuracy-drop 0.02 --folds 5\n" in out
    assert "left out" not in out
    assert xl.load_policies(tmp_path / "r") == {"default": own, "fast": own}
    (tmp_path / "r" / "settings.json").write_text(
        (tmp_path / "r" / "settings.json").read_text().replace('"epochs": 1', '"epochs": 2')
    )
    out = call.ok(*words, "2", "--resume")
    assert "policies left out, which were chosen for the network as it was before: default, fast" in " ".join(out.split())
    assert xl.load_policies(tmp_path / "r") == {}


@pytest.mark.slow
def test_placement_needs_a_number_of_exits(folder, tmp_path, call):
    words = ("fit", "--data", folder, "--size", "32", "--out", tmp_path / "n", "--placement")
    assert "only with a number in at" in call(*words, "time", "--exits", "layer1")[2]
    assert "placement: expected one of ('cost', 'time')" in call(*words, "speed", "--exits", "2")[2]
    assert not (tmp_path / "n").exists()


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
        (("--data", "none"), "no folder"),
        (("--data", "images/dark"), "class folder"),
        (("--exits", "layer9"), "error: --exits: the backbone has no module 'layer9' on its path. Did you mean"),
        (("--exits", "layer3,layer1"), "order"),
        (("--epochs", "0"), "epochs"),
        (("--backbone", "resnet18"), "backbone"),
        (("--size", "-5"), "size"),
        (("--init-weights", "none.pt"), "no file none.pt"),
        (("--out", "images"), "not empty"),
        (("--cache-features",), "--freeze-backbone"),
    ],
)
def test_what_fit_refuses_leaves_nothing(folder, tmp_path, monkeypatch, call, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(folder)
    assert message in call.error("fit", "--data", "images", "--out", "o", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


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
    shown = call.ok(*words, "--skip-bad", "--cache", tmp_path / "cache", "--resume", "--json")
    bad = json.loads(shown)["bad"]
    assert bad
    assert all("own/dark" in reason for reason in bad)
    assert count_cached() == 42 + 6 - len(bad)  # training and validation
    for verb in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):
        line = (*verb, "--bundle", out, "--data", own, "--cache", tmp_path / "cache", "--skip-bad")
        shown = call.ok(*line, "--json")
        assert len(json.loads(shown)["bad"]) == 12
    assert count_cached() == 60 - 12
    assert "skipped" in call(*line)[1]
    assert "in memory" in call("evaluate", "--bundle", out, "--data", "scenes", "--cache", tmp_path / "cache")[2]
    shown = call.ok("report", out, "--data", own, "--skip-bad", "--out", tmp_path / "report.html", "--json")
    assert len(json.loads(shown)["bad"]) == 12
    assert "without 12 that cannot be read" in (tmp_path / "report.html").read_text()
    bad_parts = set()
    for verb in (["calibrate", "--max-accuracy-drop", "0.5"], ["evaluate"]):  # the run remembers it, for its own data
        shown = call.ok(*verb, "--bundle", out, "--json")
        bad_parts |= set(json.loads(shown)["bad"])
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
    code, _, err = call("evaluate", "--bundle", tmp_path / "r", "--group-by", "x")
    assert (code, "error: --columns, --group-by: they are for other data" in err) == (2, True)
    code, _, err = call("fit", "--data", folder, "--group-by", r"x(\d)", "--out", tmp_path / "s")
    assert (code, "finds no group in 60 of 60 file names" in err) == (2, True)
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
    code, out, err = call(
        *words, tmp_path / "b", "--recipe", "scratch", "--learning-rate", "1e-3", "--json", "--normalise", "half"
    )
    assert code == 0, err
    assert json.loads(out)["epochs"] == 1
    assert "made anew" in err
    assert "pixels: mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (0.5 and 0.5, as asked for)" in err
    assert xl.load(tmp_path / "b")[0].info.preprocess == xl.data.Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)
    settings = json.loads((tmp_path / "b" / "settings.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["head_learning_rate"]) == (1e-3, None)
    code, out, err = call(*words, tmp_path / "c", "--strict-weights")
    assert code == 2
    assert "does not fit this backbone" in err
    assert "expected one of ('scratch', 'pretrained')" in call(*words, tmp_path / "d", "--recipe", "best")[2]
