"""The tree shows the flow of data: imports point down, and workflow files never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "exitlens"
LEVEL = {"errors": 0, "types": 1, "functional": 2, "model": 3, "data": 3, "workflow": 4, "delivery": 5, "cli": 6}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("exitlens.")}


def _files() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem not in ("__init__",)]


def _layer(module: str) -> str:
    return module.split(".")[1]


def test_imports_point_down():
    checked = 0
    for path in _files():
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for module in _imports(path):
            checked += 1
            assert LEVEL[_layer(module)] <= LEVEL[own], f"{path} imports {module}"
            if own in ("model", "data") and _layer(module) in ("model", "data"):
                assert _layer(module) == own, f"{path} imports {module}: model and data do not know each other"
    assert checked > 50


def test_workflow_files_do_not_import_each_other():
    for path in (SOURCE / "workflow").glob("*.py"):
        assert not {m for m in _imports(path) if _layer(m) == "workflow"}, path


def test_files_are_short():
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_every_package_states_its_purpose():
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
