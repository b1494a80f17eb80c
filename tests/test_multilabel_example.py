"""examples/multilabel.md: its Python and its commands run on few pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import exitlens as xl
from exitlens.cli import verbs
from tests.test_photos import read_commands
from tests.test_readme import read_blocks, run

PAGE = Path(__file__).parent.parent / "examples" / "multilabel.md"
SMALLER = {"--epochs 10": "--epochs 2"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_a_table_of_labels_leads_to_a_certified_bundle(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    make, use = read_blocks(PAGE, "python")
    assert make.count("2400") == 1
    space: dict[str, Any] = {}
    run(make.replace("2400", "400"), "make", space, tmp_path)
    text, said = PAGE.read_text(), {}
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    for words in read_commands(text, "exitlens"):
        result = CliRunner().invoke(verbs, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[words[0]] = " ".join(result.output.split())
    assert "with 3 labels, any number to a sample" in said["fit"]
    assert "micro-F1" in said["fit"]
    assert "micro-F1" in said["evaluate"]
    net, policy = xl.load("runs/shapes/run")
    assert (net.info.task, policy.score) == ("multilabel", "decided")
    assert net.info.classes == ("disc", "square", "cross")
    with Path("runs/shapes/answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {label for row in rows for label in row["label"].split(";") if label} <= set(net.info.classes)
    assert "micro-F1" in Path("runs/shapes/report.html").read_text()
    assert "(1, 3)" in run(use.replace("print(pred.labels,", "print(tuple(pred.labels.shape),"), "use", space, tmp_path)
