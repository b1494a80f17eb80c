"""docs/project/stability.md says what the code does: formats, versions, and the import paths that guides show."""

import ast
import re
import tomllib
from pathlib import Path

import exitlens_runtime.bundle
from exitlens.delivery import bundle
from exitlens.edge import export
from exitlens.types import policies, traces

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "project" / "stability.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def find_row(start: str) -> list[str]:
    return next(row for row in ROWS if row[0].startswith(start))


def test_formats():
    newest = {"bundle": bundle.FORMAT, "trace": traces.FORMAT, "edge bundle": export.FORMAT}
    for name, number in newest.items():
        assert find_row(name)[2] == str(number)
        assert find_row(name)[3].split(" to ")[-1] == str(number)
    assert find_row("record of a calibration")[2:4] == [str(policies.FORMAT)] * 2
    assert exitlens_runtime.bundle.FORMAT == export.FORMAT


def test_files_of_bundles_are_named():
    names = {bundle.WEIGHTS, bundle.NETWORK, bundle.POLICY, bundle.POLICIES, bundle.MANIFEST}
    names |= {export.MANIFEST, export.POLICY, export.POLICIES, export.GOLDEN}
    assert not [name for name in names if f"`{name}`" not in PAGE]


def test_versions_needed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = dict(line.split(">=", 1) for line in [*project["dependencies"], *project["optional-dependencies"]["onnx"]])
    found = {
        "Python": project["requires-python"].removeprefix(">="),
        "PyTorch": asked["torch"],
        "torchvision": asked["torchvision"],
        "ONNX Runtime": asked["onnxruntime"],
    }
    for name, version in found.items():
        assert find_row(name)[1] == f"{version} or newer"


def test_paths_that_guides_show_are_public():
    shown = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exitlens."):
                    shown |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert shown
    assert not [name for name in shown if f"`{name}`" not in PAGE]
