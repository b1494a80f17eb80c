"""Tries one cell: installs it afresh, runs the README's lines on few images and a quick set of tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.compat.cells import CHOSEN, Cell
from scripts.release.environments import Environment, StepError
from scripts.release.smoke import write_example
from scripts.release.versions import ROOT

TESTS = {
    "private": ("tests/model/test_torch_compat.py",),
    "cutting": tuple(
        f"tests/model/cutting/test_{one}.py" for one in ("graph", "modes", "split", "trace_export", "trace_fx", "verify")
    ),
    "backbones": (
        "tests/model/test_families.py",
        *(f"tests/model/backbones/test_{one}.py" for one in ("build", "transformers")),
    ),
    "onnx": ("tests/edge/test_export.py",),
}
NEEDED_BY_TESTS = ("filelock", "hypothesis", "pytest")
SHOWN = ("torch", "torchvision", *CHOSEN, "numpy", "scipy", "pillow", "onnx", "onnxruntime", "onnxscript")
OPTIONS = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-o", "filterwarnings=", "-o", "addopts=")
PATHS = ("src", "runtime/src", "demo-data/src", ".")
SURROUNDINGS = {"PYTHONPATH": ":".join(str(ROOT / path) for path in PATHS), "OMP_NUM_THREADS": "1"}


def attempt(cell: Cell, python: Path) -> dict[str, Any]:
    """What was installed and what came of every check; where the cell cannot be installed, ``fault`` alone.

    Warnings are no errors here: a newer PyTorch may announce what it will change.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            environment = Environment.make(folder / "environment", python)
            environment.install(cell.list_requirements(), lowest=cell.is_lowest)
            environment.install(NEEDED_BY_TESTS)  # the newest that go with the others
        except StepError as error:
            return {"fault": shorten(error)}
        versions = environment.list_installed()
        found: dict[str, Any] = {"installed": {one: versions[one] for one in SHOWN if one in versions}}
        found["readme"] = _run_example(environment, folder)
        return found | {check: _run_tests(environment, check, folder) for check in TESTS}


def _run_example(environment: Environment, folder: Path) -> dict[str, Any]:
    (folder / "example.py").write_text(write_example())
    try:
        environment.run("python", "example.py", cwd=folder, **SURROUNDINGS)
    except StepError as error:
        return {"tests": 1, "failed": 1, "fault": shorten(error)}
    return {"tests": 1, "failed": 0}


def _run_tests(environment: Environment, check: str, folder: Path) -> dict[str, Any]:
    report = folder / f"{check}.xml"
    words = ("python", "-m", "pytest", *OPTIONS, f"--junit-xml={report}", *TESTS[check])
    try:
        environment.run(*words, cwd=ROOT, **SURROUNDINGS)
    except StepError as error:
        if not report.exists():
            return {"tests": 0, "failed": 1, "fault": shorten(error)}
    return read_report(report)


def read_report(path: Path) -> dict[str, Any]:
    """How many tests ran and failed, and the first that failed, of pytest's JUnit file; those skipped do not count."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    found: dict[str, Any] = {"tests": count["tests"] - count["skipped"], "failed": count["failures"] + count["errors"]}
    if found["failed"]:
        case = next(
            case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
        )
        fault = next(one for one in case if one.tag in ("failure", "error"))
        found["fault"] = f"{case.get('name')}: {(fault.get('message') or '').splitlines()[0]:.200}"
    return found


def shorten(error: StepError) -> str:
    """The last line that says something, without the folders of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].replace(str(ROOT), ".")
