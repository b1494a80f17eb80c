"""Which versions of Python, PyTorch, timm and transformers work: each cell is installed afresh and runs a quick set of tests.

Cells of a Python that is neither on PATH nor named in the variable PYTHONS are not there. An hour, and network.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.harness import Job, Study, table
from benchmarks.results import Runs, Tree
from scripts.release.environments import VERSIONS, Environment, StepError, find_pythons
from scripts.release.smoke import write_example
from scripts.release.versions import ROOT

TORCH = ("2.11", "2.12", "2.13", "2.14", "2.15")  # lowest supported to newest
EXTRAS, CHOSEN = ("timm", "hf", "onnx"), ("timm", "transformers")
TESTS = {
    "private": ("tests/model/test_torch_compat.py",),
    "cutting": ("tests/model/cutting",),
    "backbones": ("tests/model/test_families.py", "tests/model/backbones"),
    "onnx": ("tests/edge/test_export.py",),
}
TITLES = {
    "readme": "README's lines",
    "private": "what is used of PyTorch's private parts",
    "cutting": "cutting",
    "backbones": "timm, transformers, torchvision",
    "onnx": "export",
}
NEEDED_BY_TESTS = ("filelock", "hypothesis", "pytest")
SHOWN = ("torch", "torchvision", *CHOSEN, "numpy", "scipy", "pillow", "onnx", "onnxruntime", "onnxscript")
OPTIONS = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-o", "filterwarnings=", "-o", "addopts=")
PATHS = ("src", "runtime/src", "demo-data/src", ".")
SURROUNDINGS = {"PYTHONPATH": ":".join(str(ROOT / path) for path in PATHS), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Cell:
    python: str  # major and minor version
    torch: str  # major and minor version; torchvision goes with it
    lowest: tuple[str, ...] = ()  # packages at their lower bound; ``("all",)``: every direct dependency is

    @property
    def name(self) -> str:
        return " ".join([f"python-{self.python}", f"torch-{self.torch}", *(f"lowest-{name}" for name in self.lowest)])

    def list_requirements(self) -> list[str]:
        pinned = [f"torch=={self.torch}.*", *(find_lowest(name) for name in self.lowest if name in CHOSEN)]
        return [*list_dependencies(), *pinned]


CELLS = (
    *(Cell(VERSIONS[0], torch) for torch in (TORCH[0], TORCH[-1])),
    Cell(VERSIONS[0], TORCH[0], ("all",)),
    *(Cell(python, TORCH[-1]) for python in VERSIONS[1:]),
    Cell(VERSIONS[0], TORCH[-1], CHOSEN),
    *(Cell(VERSIONS[0], torch) for torch in TORCH[1:-1]),
    *(Cell(python, TORCH[0]) for python in VERSIONS[1:]),
)


@cache
def list_dependencies() -> list[str]:
    """Return what exitlens asks for, with the extras that are tried."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(requirement for extra in EXTRAS for requirement in extras[extra])]


def find_lowest(package: str) -> str:
    """Return a package's lower bound as a requirement: ``timm==1.0.9``."""
    (bound,) = {requirement for requirement in list_dependencies() if requirement.startswith(f"{package}>=")}
    return bound.replace(">=", "==") + ".*" * (bound.count(".") < 2)


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {cell.name: partial(attempt, cell) for cell in CELLS}


def attempt(cell: Cell) -> Tree:
    """Return what was installed and the outcome of every check; ``fault`` alone if nothing can be installed. Warnings are no errors here."""
    pythons = find_pythons([Path(path) for path in os.environ.get("PYTHONS", "").split()])
    if cell.python not in pythons:
        raise SystemExit(f"no Python {cell.python} here. Fix: name its interpreter in the variable PYTHONS")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            environment = Environment.make(folder / "environment", pythons[cell.python])
            environment.install(cell.list_requirements(), lowest=cell.lowest == ("all",))
            environment.install(NEEDED_BY_TESTS)  # the newest that go with the others
        except StepError as error:
            return {"fault": shorten(error)}
        versions = environment.list_installed()
        installed = {package: versions[package] for package in SHOWN if package in versions}
        checks = {check: run_tests(environment, check, folder) for check in TESTS}
        (folder / "example.py").write_text(write_example())
        try:
            environment.run("python", "example.py", cwd=folder, **SURROUNDINGS)
            example: Tree = {"tests": 1, "failed": 0}
        except StepError as error:
            example = {"tests": 1, "failed": 1, "fault": shorten(error)}
        return {"installed": installed, "readme": example, **checks}


def run_tests(environment: Environment, check: str, folder: Path) -> Tree:
    report = folder / f"{check}.xml"
    words = ("python", "-m", "pytest", *OPTIONS, f"--junit-xml={report}", *TESTS[check])
    try:
        environment.run(*words, cwd=ROOT, **SURROUNDINGS)
    except StepError as error:
        if not report.exists():
            return {"tests": 0, "failed": 1, "fault": shorten(error)}
    return read_report(report)


def read_report(path: Path) -> Tree:
    """Count the tests that ran and failed in pytest's JUnit file, and name the first that failed; those skipped do not count."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    report: Tree = {"tests": count["tests"] - count["skipped"], "failed": count["failures"] + count["errors"]}
    faults = [(case, fault) for case in suite.iter("testcase") for fault in case if fault.tag in ("failure", "error")]
    for case, fault in faults[:1]:
        report["fault"] = f"{case.get('name')}: {(fault.get('message') or '').splitlines()[0]:.200}"
    return report


def shorten(error: StepError) -> str:
    """Return the last line that says something, without the folders of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].replace(str(ROOT), ".")


def write_table(runs: Runs) -> list[str]:
    head = ("Python", "PyTorch", "torchvision", *CHOSEN, "all others", *TITLES.values())
    measured = {cell: runs[cell.name] for cell in CELLS if cell.name in runs}
    faults = []
    for cell, run in measured.items():
        parts = {"installing": run} | {TITLES[check]: run[check] for check in TITLES if check in run}
        faults += [f"- {cell.name}, {title}: `{part['fault']}`" for title, part in parts.items() if "fault" in part]
    rows = (write_row(cell, run) for cell, run in measured.items())
    return [*table(head, rows), "", *(faults or ["Nothing that was run failed."])]


def write_row(cell: Cell, measured: Tree) -> list[str]:
    installed = {"torch": cell.torch} | measured.get("installed", {})
    versions = [installed.get(package, "").partition("+")[0] for package in ("torch", "torchvision", *CHOSEN)]
    others = "lowest" if cell.lowest == ("all",) else "newest"
    return [cell.python, *versions, others, *(write_check(measured, check) for check in TITLES)]


def write_check(measured: Tree, check: str) -> str:
    if check not in measured:
        return "not installed"
    tests, failed = measured[check]["tests"], measured[check]["failed"]
    good, bad = ("work", "**fail**") if check == "readme" else (f"{tests} pass", f"**{failed} of {tests} fail**")
    return bad if failed else good


STUDY = Study("compat", list_cells, tables={"compat": write_table})
