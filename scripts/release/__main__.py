"""Checks that a release can be made; exit code 1 if not.

Usage: python -m scripts.release [--dist DIR] [--python PATH ...] [--archives-only] [--json FILE]

Builds an sdist and a wheel of each distribution, checks their metadata, contents and sizes, and installs the wheels into
fresh environments: for every Python of 3.11 to 3.13 on PATH, with the newest and with the lowest dependencies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.release.archives import DISTRIBUTIONS, build_all, check_metadata, find_faults, list_sizes
from scripts.release.environments import VERSIONS, Environment, StepError, find_pythons
from scripts.release.smoke import list_requirements, run_library, run_runtime
from scripts.release.versions import ROOT, read_version

EXTRAS = ("demo", "onnx")
SHOWN = ("torch", "torchvision", "numpy", "scipy", "pillow", "onnxruntime")  # versions in the table


@dataclass(frozen=True)
class Outcome:
    """The outcome in one environment."""

    python: str
    dependencies: str
    distribution: str
    installed: dict[str, str]
    fault: str

    def describe(self) -> str:
        """Return a line of the table, and below it what failed."""
        shown = ", ".join(f"{name} {self.installed[name]}" for name in SHOWN if name in self.installed)
        line = f"{self.python:7}{self.dependencies:9}{self.distribution:18}{'FAILED' if self.fault else 'works':8}{shown}"
        return "\n".join([line, *(f"    {row}" for row in self.fault.splitlines())])


def try_installs(dist: Path, python: str, path: Path, version: str) -> Iterator[Outcome]:
    """Try both distributions in fresh environments of one Python, with the newest and with the lowest dependencies."""
    library, runtime, data = (distribution.find(dist, ".whl") for distribution in DISTRIBUTIONS)
    steps = (
        ("exitlens", [*list_requirements(library, EXTRAS), str(library), str(data)], run_library),
        ("exitlens-runtime", [*list_requirements(runtime), str(runtime)], run_runtime),
    )
    for dependencies in ("newest", "lowest"):
        with tempfile.TemporaryDirectory() as name:
            (work := Path(name) / "work").mkdir()
            for distribution, requirements, run in steps:
                installed: dict[str, str] = {}
                fault = ""
                try:
                    environment = Environment.make(Path(name) / distribution, path)
                    environment.install(requirements, lowest=dependencies == "lowest", links=dist)
                    installed = environment.list_installed()
                    run(environment, work, version)
                except (StepError, OSError) as error:
                    fault = str(error)
                yield Outcome(python, dependencies, distribution, installed, fault)


def check_archives(dist: Path) -> list[str]:
    """Build and check all archives, print their sizes, and return their faults."""
    shutil.rmtree(dist, ignore_errors=True)
    build_all(dist)
    check_metadata(dist)
    for name, megabytes, largest in list_sizes(dist):
        print(f"{name:45}{megabytes:8.3f} MB{'' if largest is None else f'   (at most {largest})'}")
    return find_faults(dist)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the archives go; emptied first")
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter that is not on PATH")
    parser.add_argument("--archives-only", action="store_true", help="install nothing")
    parser.add_argument("--json", type=Path, help="write all of it to this file")
    given = parser.parse_args(arguments)
    version = read_version()
    faults = check_archives(given.dist)
    print("\n".join(faults))
    outcomes: list[Outcome] = []
    pythons = {} if given.archives_only else find_pythons(given.python)
    for python, path in pythons.items():
        for outcome in try_installs(given.dist.resolve(), python, path, version):
            print(outcome.describe(), flush=True)
            outcomes.append(outcome)
    if not given.archives_only and (missing := [version for version in VERSIONS if version not in pythons]):
        print(f"not tried, because not on this machine: Python {', '.join(missing)} (--python PATH)")
    if given.json:
        sizes = [{"archive": name, "megabytes": megabytes} for name, megabytes, _ in list_sizes(given.dist)]
        result = {
            "version": version,
            "sizes": sizes,
            "faults": faults,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    failed = bool(faults) or any(outcome.fault for outcome in outcomes)
    print("not ready for a release" if failed else "a release can be made")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
