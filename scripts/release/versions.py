"""The version, which stands in six places and is the same in all."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = r"(\d+\.\d+\.\d+)"
PLACES = {  # file: what stands before the version there
    "src/exitlens/__init__.py": r'^__version__ = "',
    "runtime/src/exitlens_runtime/__init__.py": r'^__version__ = "',
    "demo-data/src/exitlens_demo_data/__init__.py": r'^__version__ = "',
    "pyproject.toml": r'^demo = \["exitlens-demo-data==',
    "CITATION.cff": r"^version: ",
    "CHANGELOG.md": r"^## \[",  # the newest that has a number
}
DATES = {"CITATION.cff": r'^date-released: "', "CHANGELOG.md": rf"^## \[{NUMBER[1:-1]}\] - "}


def read_versions(root: Path = ROOT) -> dict[str, str]:
    """Return the version in every place; empty where there is none."""
    return {name: _find(root / name, before + NUMBER) for name, before in PLACES.items()}


def read_dates(root: Path = ROOT) -> dict[str, str]:
    """Return the day of the release in every place."""
    return {name: _find(root / name, before + r"(\d{4}-\d\d-\d\d)") for name, before in DATES.items()}


def read_version(root: Path = ROOT) -> str:
    """Return the version if all places agree on it and on the date."""
    for places in (read_versions(root), read_dates(root)):
        if len(set(places.values())) > 1 or "" in places.values():
            listed = ", ".join(f"{name}: {value or 'none'}" for name, value in places.items())
            raise SystemExit(f"expected one version and one date in all places, got {listed}. Fix: make them the same")
    return read_versions(root)["CITATION.cff"]


def _find(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(), re.M)
    return match[1] if match else ""
