"""docs/start/index.md: its commands run as they stand, on fewer scenes and for one epoch."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import exitlens as xl
from exitlens.cli import verbs
from tests.test_readme import read_blocks

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "start" / "index.md"


def read_lines() -> list[str]:
    return [line for block in read_blocks(PAGE, "sh") for line in block.splitlines()]


def test_there_are_ten_commands_at_most():
    lines = read_lines()
    assert len(lines) <= 10
    assert [line.split()[0] for line in lines[:6]] == ["git", "cd", "python3.11", ".", "pip", "python"]
    assert {line.split()[0] for line in lines[6:]} == {"exitlens"}


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["write_scenes.py", "photos"])
    load = xl.demo.load_scenes
    monkeypatch.setattr(xl, "load_scenes", lambda split, limit: load(split, limit=limit // 10))
    runpy.run_path(str(ROOT / "examples" / "write_scenes.py"), run_name="__main__")
    assert len(list(Path("photos").rglob("*.png"))) == 300
    for line in read_lines():
        program, *words = shlex.split(line)
        if program == "exitlens":
            more = ["--epochs", "1"] if words[0] == "fit" else []
            found = CliRunner().invoke(verbs, [*words, *more], catch_exceptions=False)
            assert found.exit_code == 0, found.output
    assert Path("why/00015_strip.png").exists()
