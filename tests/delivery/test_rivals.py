import json
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.delivery import rivals
from exitlens.delivery.run_directory import read_network
from exitlens.errors import DataError
from exitlens.types.comparisons import PLAIN


def test_the_interval_counts_groups():
    """By hand: two groups, whose deviations sum to 1 and -1."""
    values, groups = torch.tensor([1.0, 1.0, 0.0, 0.0]).double(), torch.tensor([0, 0, 1, 1])
    mean, low, high = rivals._compare_means(values, groups)
    assert (mean, high - mean) == (0.5, pytest.approx(1.96 * (2 * 2) ** 0.5 / 4))
    single = rivals._compare_means(values, None)
    assert single[2] - mean == pytest.approx(1.96 * values.std().item() / 4**0.5)
    assert high - low > single[2] - single[1]


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
def test_rivals_are_trained_by_the_same_recipe_and_compared(run):
    said = []
    compared = rivals.compare_rivals(run, ("plain", "cut", "half"), say=said.append)
    names = [each.name for each in compared.contenders]
    assert names[:3] == ["exits", "plain", "cut"]
    assert said[0].endswith("beside/plain-0")
    record, other = (json.loads((folder / "settings.json").read_text()) for folder in (run, run / "beside" / "plain-0"))
    assert record["settings"] == other["settings"]
    assert other["loss"]["weight"] == 0
    net, policy = xl.load(run)
    assert rivals.read_comparison(run, net, policy) == compared
    assert rivals.read_comparison(run / "bundle", net, policy) == compared
    assert rivals.read_comparison(run, net, replace(policy, thresholds=(0.5, 0.5))) is None
    plain = next(each for each in compared.contenders if each.name == PLAIN)
    assert plain.agreement == 1
    static, _ = xl.load(run / "beside" / "plain-0")
    assert static.num_exits == 1
    assert (xl.collect(static, xl.demo.load_motifs("test")).correct.float().mean().item()) == pytest.approx(plain.accuracy)
    again = rivals.compare_rivals(run, ("plain", "cut"))  # trains nothing
    assert [each.accuracy for each in again.contenders[:3]] == [each.accuracy for each in compared.contenders[:3]]


def test_a_run_without_a_record_of_its_network(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataError, match="does not say which network it began with"):
        read_network(tmp_path)
