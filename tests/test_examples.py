"""examples/series.md and examples/volumes.md: their Python runs, on few samples."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import exitlens as xl

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "load", "limit"), [("series", "load_motifs", 48), ("volumes", "load_blobs", 24)])
def test_an_example_runs(page, load, limit, monkeypatch, capsys):
    whole = getattr(xl.demo, load)
    monkeypatch.setattr(xl.demo, load, lambda split, **more: whole(split, limit=limit, **more))
    text = (EXAMPLES / f"{page}.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    assert code.count("epochs=6") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.errors.DriftWarning)  # a few untrained answers say nothing
        exec(compile(code.replace("epochs=6", "epochs=1"), f"{page}.md", "exec"), {})
    assert "share of the oracle" in capsys.readouterr().out
