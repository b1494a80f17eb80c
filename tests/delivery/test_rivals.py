import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from scipy import stats

import exitlens as xl
from exitlens.data import demo
from exitlens.delivery import rivals
from exitlens.delivery.run_directory import read_network
from exitlens.errors import DataError
from exitlens.types.comparisons import PLAIN
from tests.conftest import build_once

LIMIT = 400


def test_the_interval_counts_groups():
    """By hand: two groups, whose deviations sum to 1 and -1."""
    values, groups = torch.tensor([1.0, 1.0, 0.0, 0.0]).double(), torch.tensor([0, 0, 1, 1])
    mean, low, high = rivals._compare_means(values / 50, groups, 1)
    assert (mean, high - mean) == (0.01, pytest.approx(stats.t.ppf(0.975, 1) * (2 * 2) ** 0.5 / 4 / 50))
    single = rivals._compare_means(values / 50, None, 1)
    assert single[2] - mean == pytest.approx(stats.t.ppf(0.975, 3) * values.std().item() / 50 / 4**0.5)
    assert high - low > single[2] - single[1]
    three = rivals._compare_means(values / 50, None, 3)  # three intervals that hold together
    assert three[2] - mean == pytest.approx(stats.t.ppf(1 - 0.025 / 3, 3) * values.std().item() / 50 / 4**0.5)
    assert rivals._compare_means(values, torch.zeros(4, dtype=torch.long), 1) == (
        0.5,
        -1,
        1,
    )  # of one group nothing is known


@pytest.fixture(scope="module", autouse=True)
def _few_samples_and_rounds():
    """The first series of each split, and little time for timing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_motifs", partial(demo.load_motifs, limit=LIMIT))
        for name, value in (("TIMED", 64), ("ROUNDS", 2), ("SECONDS", 0.0), ("BOUND", 100)):
            patch.setattr(rivals, name, value)
        build_once(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, call_module):
    """A run on generated series, calibrated."""
    out = tmp_path_factory.mktemp("run") / "r"
    call_module("fit", "--data", "motifs", "--epochs", "1", "--out", str(out), "--exits", "layer1,layer2")
    call_module("calibrate", "--bundle", str(out), "--max-accuracy-drop", "0.05")
    return out


@pytest.fixture(scope="module")
def call_module():
    from exitlens.cli import verbs

    def call(*words):
        verbs(list(words), standalone_mode=False)

    return call


@pytest.mark.slow
def test_rivals_have_the_teacher_of_the_run(run, tmp_path, monkeypatch):
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("beside"))
    teacher, given = xl.load(run)[0], []
    record = json.loads((copied / "settings.json").read_text())
    record["settings"]["teacher"] = teacher.fingerprint()
    (copied / "settings.json").write_text(json.dumps(record))

    def stop(net, train, val, **options):
        given.append(options["teacher"])
        raise xl.errors.TrainingError("stopped")

    monkeypatch.setattr(rivals, "fit", stop)
    with pytest.raises(xl.errors.TrainingError, match="stopped"):
        rivals.compare_rivals(copied, ("plain",), teacher=teacher)
    assert given == [teacher]
    with pytest.raises(xl.errors.InputError, match=r"teacher: .* learned from network .* Fix: pass the same \(--teacher\)"):
        rivals.compare_rivals(copied, ("plain",))
    with pytest.raises(xl.errors.InputError, match="had no teacher"):
        rivals.compare_rivals(run, ("plain",), teacher=teacher)
    with pytest.raises(xl.errors.InputError, match="a teacher takes images of one size"):
        rivals.compare_rivals(copied, ("images",), teacher=teacher)


@pytest.mark.slow
def test_rivals_are_trained_by_the_same_recipe_and_compared(run, tmp_path):
    said = []
    compared = rivals.compare_rivals(run, ("plain", "cut", "half"), say=said.append)
    names = [each.name for each in compared.contenders]
    assert names[:3] == ["exits", "plain", "cut"]
    assert any(line.endswith("beside/plain-0") for line in said)
    record, other = (json.loads((folder / "settings.json").read_text()) for folder in (run, run / "beside" / "plain-0"))
    assert record["settings"] == other["settings"]
    assert other["loss"]["weight"] == 0
    net, policy = xl.load(run)
    assert rivals.read_comparison(run, net, policy) == compared
    assert rivals.read_comparison(run / "bundle", net, policy) == compared
    assert rivals.read_comparison(run, net, replace(policy, thresholds=(0.5, 0.5))) is None
    (other := tmp_path / "beside").mkdir()
    (other / "comparison.json").write_text("{}")
    assert rivals.read_comparison(tmp_path, net, policy) is None  # damaged
    plain = next(each for each in compared.contenders if each.name == PLAIN)
    assert plain.agreement == 1
    static, never = xl.load(run / "beside" / "plain-0")
    assert (static.num_exits, never.thresholds) == (1, ())
    assert read_network(run / "beside" / "plain-0").exits == "0"
    assert (xl.collect(static, xl.demo.load_motifs("test", limit=LIMIT)).correct.float().mean().item()) == pytest.approx(
        plain.accuracy
    )
    again = rivals.compare_rivals(run, ("plain", "cut"))  # trains nothing
    assert xl.load(run / "beside" / "cascade")[0].num_exits == 2
    assert [each.accuracy for each in again.contenders[:3]] == [each.accuracy for each in compared.contenders[:3]]


def test_a_run_without_a_record_of_its_network(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataError, match="does not say which network it began with"):
        read_network(tmp_path)


@pytest.mark.slow
def test_few_groups_to_test_on(tmp_path, call_module):
    """What cannot be measured is left out, and nothing is lost."""
    rng = torch.Generator().manual_seed(0)
    for i in range(120):
        folder = tmp_path / "data" / ("red" if i % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=rng, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"who{i // 6}_{i}.png")
    out = str(tmp_path / "r")
    words = ("--data", str(tmp_path / "data"), "--group-by", r"(who\d+)_", "--size", "32", "--exits", "layer1")
    call_module("fit", *words, "--epochs", "1", "--out", out)
    call_module("calibrate", "--bundle", out, "--max-disagreement", "0.5")
    compared = rivals.compare_rivals(tmp_path / "r" / "bundle", ("plain",))
    assert compared.groups < 20
    assert [each.binding for each in compared.contenders] == [None, None]


@pytest.mark.slow
def test_several_labels(tmp_path, call_module):
    rows = ["a,b,label", *(f"{i % 7},{i % 5},{'x;y' if i % 3 else 'x'}" for i in range(200))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    words = ("--data", str(tmp_path / "rows.csv"), "--columns", "features=a|b,label=label", "--task", "multilabel")
    out = str(tmp_path / "r")
    call_module("fit", *words, "--epochs", "1", "--out", out)
    call_module("calibrate", "--bundle", out, "--max-disagreement", "0.5")
    ours, plain = rivals.compare_rivals(tmp_path / "r", ("plain",)).contenders
    assert (ours.binding, plain.agreement) == (None, 1)
