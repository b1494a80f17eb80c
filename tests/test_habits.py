"""The files around the code: make says what it does; workflows call what exists."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
if not (ROOT / ".github").is_dir():
    pytest.skip("a source distribution comes without these files", allow_module_level=True)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {name for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.M) for name in line.split()}
DESCRIBED = dict(re.findall(r"^([a-z][a-z-]*):.*?  ## (.+)$", MAKEFILE, re.M))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")


def is_target(name: str) -> bool:
    return re.search(rf"^{re.escape(name.replace('.venv', '$(VENV)'))}:", MAKEFILE, re.M) is not None


def list_steps(workflow: Path) -> list[dict[str, object]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job.get("steps", ())]


def test_every_target_says_what_it_does():
    assert DESCRIBED.keys() == TARGETS


@needs_make
def test_make_alone_prints_every_target():
    done = subprocess.run(["make", "-s"], cwd=ROOT, check=True, capture_output=True, text=True, env=_without_make())
    assert {line.split()[0]: line.split(None, 1)[1] for line in done.stdout.splitlines()} == DESCRIBED


def _without_make() -> dict[str, str]:
    """The environment as it is where make did not start the tests."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_and_files_that_exist(workflow):
    for step in list_steps(workflow):
        for line in str(step.get("run", "")).splitlines():
            for target in re.findall(r"\bmake ([\w./-]+)", line):
                assert is_target(target), f"{workflow.name}: {line}"
            for path in re.findall(r"(?:^|\s)(\.ci/\S+)", line):
                assert (ROOT / path).stat().st_mode & 0o100, f"{workflow.name}: {line}"
