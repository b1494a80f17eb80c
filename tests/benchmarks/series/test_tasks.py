"""Splits of series, and one run from end to end on few of them."""

from dataclasses import replace

import pytest
import torch

import exitlens as xl
from benchmarks.series import tasks
from benchmarks.series.measure import EGT, PLAIN, run
from benchmarks.series.tasks import MOTIFS, load_task


def make_archive(name: str) -> xl.ArraySet:
    labels = torch.arange(40) % 3
    values = labels[:, None, None] + torch.randn(40, 2, 24, generator=torch.Generator().manual_seed(0))
    return xl.ArraySet(5 + values, labels, ("a", "b", "c"), xl.SeriesPreprocess((0.0, 0.0), (1.0, 1.0)))


def test_half_of_each_class_trains_and_seeds_draw_anew(monkeypatch):
    monkeypatch.setattr(tasks, "read_archive", make_archive)
    task, other = load_task("gunpoint", 0), load_task("gunpoint", 1)
    parts = [task.train, task.validation, *task.tests.values()]
    assert [torch.bincount(one.labels).tolist() for one in parts] == [[7, 6, 6], [3, 3, 3], [4, 4, 4]]
    rows = torch.cat([one.values for one in parts]).flatten(1)
    assert len(rows.unique(dim=0)) == 40
    assert task.train.preprocess == task.validation.preprocess
    torch.testing.assert_close(task.train.inputs.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    assert not torch.equal(task.train.values, other.train.values)
    assert task.epochs * 2 >= tasks.UPDATES


def test_without_aeon_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install aeon"):
        load_task("gunpoint", 0)


@pytest.mark.slow
def test_a_run_has_what_the_page_needs(tmp_path):
    whole = load_task(MOTIFS, 0)
    tests = {name: one.first(40) for name, one in whole.tests.items()}
    task = replace(whole, train=whole.train.first(64), validation=whole.validation.first(40), tests=tests, epochs=1)
    ours, plain = (run(task, condition, 0, tmp_path / condition) for condition in (EGT, PLAIN))
    assert len(ours["cost"]) == len(ours["tests"]["independent"]["accuracy"]) == len(ours["maps"]["energy_in_mask"]) == 4
    assert ours["head_share"] <= 0.05
    assert len(plain["cost"]) == 1
    assert 0 < ours["routed"]["cost"] <= ours["cost"][-1]
