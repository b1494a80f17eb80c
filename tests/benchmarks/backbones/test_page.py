"""The page about backbones, and one that is tried."""

import pytest

from benchmarks.backbones import page
from benchmarks.backbones.__main__ import read_kept
from benchmarks.backbones.attempt import attach, passes, try_backbone
from benchmarks.backbones.catalogue import Backbone
from benchmarks.backbones.edge import try_edge
from benchmarks.backbones.page import write_page
from benchmarks.markdown import ROOT


def test_the_committed_page_is_made_from_the_committed_results(tmp_path, monkeypatch):
    (tmp_path / "docs" / "measured").mkdir(parents=True)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    write_page(read_kept())
    assert (tmp_path / "docs" / "measured" / "backbones.md").read_text() == (
        ROOT / "docs" / "measured" / "backbones.md"
    ).read_text()


@pytest.mark.slow
def test_a_small_backbone_passes_everything():
    small = Backbone("ours", "small", 40)
    row = try_backbone(small)
    row |= try_edge(attach(small, row["cuts"]))
    assert passes(row)
    assert not passes({**row, "edge": False})
    assert not passes({**row, "eval_gap": 1e-9})
    assert not passes({"error": "refused"})
