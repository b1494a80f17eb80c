"""Writes the table in docs/project/compatibility.md from benchmarks/results/compat.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compat.attempt import TESTS
from benchmarks.compat.cells import CELLS, CHOSEN, COMPAT, Cell, find_lowest
from benchmarks.markdown import ROOT, fill, say_what_is_missing, table

Runs = Mapping[str, dict[str, Any]]
CHECKS = ("readme", *TESTS)
TITLES = {
    "readme": "README's lines",
    "private": "what is used of PyTorch's private parts",
    "cutting": "cutting",
    "backbones": "timm, transformers, torchvision",
    "onnx": "export",
}
HEAD = ("Python", "PyTorch", "torchvision", *CHOSEN, "all others", *(TITLES[check] for check in CHECKS))


def write_part(runs: Runs) -> list[str]:
    """All that stands between the markers: a row for every cell, and what failed."""
    lines = say_what_is_missing([cell.name for cell in CELLS], runs, "make compat")
    lines += table(HEAD, (_write_row(cell, runs.get(cell.name)) for cell in CELLS))
    faults = [fault for cell in CELLS for fault in _list_faults(cell, runs.get(cell.name, {}))]
    return [*lines, "", *(faults or ["Nothing that was run failed."])]


def _write_row(cell: Cell, found: dict[str, Any] | None) -> list[str]:
    installed = (found or {}).get("installed", {})
    torch = [installed.get("torch", cell.torch).partition("+")[0], installed.get("torchvision", "").partition("+")[0]]
    chosen = [installed.get(one) or _say_wanted(cell, one) for one in CHOSEN]
    others = "lowest" if cell.is_lowest else "newest"
    return [cell.python, *torch, *chosen, others, *(_write_check(found, check) for check in CHECKS)]


def _say_wanted(cell: Cell, package: str) -> str:
    return find_lowest(package).partition("==")[2] if {package, "all"} & set(cell.lowest) else "newest"


def _write_check(found: dict[str, Any] | None, check: str) -> str:
    if found is None:
        return "not run"
    if check not in found:
        return "not installed"
    tests, failed = found[check]["tests"], found[check]["failed"]
    if check == "readme":
        return "**fail**" if failed else "work"
    return f"**{failed} of {tests} fail**" if failed else f"{tests} pass"


def _list_faults(cell: Cell, found: dict[str, Any]) -> list[str]:
    parts = {"installing": found, **{TITLES[check]: found[check] for check in CHECKS if check in found}}
    return [f"- {cell.name}, {title}: `{part['fault']}`" for title, part in parts.items() if "fault" in part]


def main() -> None:
    COMPAT.fold()
    fill("compat", write_part(COMPAT.read()))
    print(f"wrote the table of {ROOT / 'docs' / 'project' / 'compatibility.md'}")


if __name__ == "__main__":
    main()
