"""Notebooks that were saved with outputs are told, and none is committed."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.check_notebooks import count_outputs, main

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_notebooks_with_outputs_are_told(tmp_path, capsys):
    run, clean = tmp_path / "run.ipynb", tmp_path / "clean.ipynb"
    cells = [{"cell_type": "markdown"}, {"outputs": [], "execution_count": None}, {"outputs": [{}]}, {"execution_count": 3}]
    run.write_text(json.dumps({"cells": cells}))
    clean.write_text(json.dumps({"cells": cells[:2]}))
    assert (count_outputs(run), count_outputs(clean)) == (2, 0)
    assert main([str(clean)]) == 0
    assert main([str(clean), str(run)]) == 1
    assert capsys.readouterr().out == f"{run}: 2 cells have outputs: clear all outputs and save it again\n"


def test_every_notebook_is_committed_without_outputs():
    notebooks = sorted(EXAMPLES.rglob("*.ipynb"))
    assert notebooks
    assert not [path for path in notebooks if count_outputs(path)]
