"""Pages whose Python needs packages that CI does not have, run as a whole."""

from __future__ import annotations

import pytest

from tests.test_readme import ROOT, read_blocks, readme, run  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_trackers(readme, tmp_path, monkeypatch):  # noqa: F811
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    page, space, printed = ROOT / "docs" / "guides" / "trackers.md", dict(readme[0]), ""
    blocks = read_blocks(page, 'python(?: title="[^"]*")?')
    assert len(blocks) == 5
    for block in blocks:
        printed += run(block, page.name, space, tmp_path)
    assert "\n2 epochs\n" in printed
    assert list(space["answers"].columns) == ["label", "exit", "confidence", "cost"]
