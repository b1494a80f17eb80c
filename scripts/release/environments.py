"""Fresh environments for every Python on this machine, filled by uv, and programs that run in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")
LONGEST_SECONDS = 1800  # of one command, installing PyTorch included
SAY_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
SAY_INSTALLED = (
    "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


class StepError(Exception):
    """A command failed; the message has its last lines."""


def find_pythons(given: Iterable[Path] = ()) -> dict[str, Path]:
    """Return a working interpreter for each version: the given ones, else the first on PATH."""
    pythons: dict[str, Path] = {}
    for path in [*given, *_list_candidates()]:
        version = _ask_version(path)
        if version and version not in pythons:
            pythons[version] = path
    return dict(sorted(pythons.items()))


def _list_candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from (path for version in VERSIONS if (path := Path(folder) / f"python{version}").is_file())


def _ask_version(path: Path) -> str:
    """Return its version if that is supported and runs, else nothing: a name on PATH may be a shim without a Python."""
    try:
        done = subprocess.run([str(path), "-c", SAY_VERSION], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() in VERSIONS else ""


@dataclass(frozen=True)
class Environment:
    """A separate virtual environment in ``folder``."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, python: Path) -> Environment:
        """Make an empty environment in place of any former one."""
        _call([*_UV, "venv", "--quiet", "--clear", "--python", str(python), str(folder)], folder.parent)
        return cls(folder)

    def install(self, requirements: Sequence[str], *, lowest: bool = False, links: Path | None = None) -> None:
        """Install wheels only: the newest, or the lowest versions that the requirements allow and that have a wheel."""
        words = ["pip", "install", "--quiet", "--python", str(self.folder), "--only-binary", ":all:"]
        words += ["--resolution", "lowest-direct" if lowest else "highest"]
        words += ["--find-links", str(links)] if links else []
        _call([*_UV, *words, *requirements], self.folder.parent)

    def run(self, *words: str, cwd: Path, **variables: str) -> str:
        """Return what one of its programs prints; a program that fails is a StepError."""
        program, *rest = words
        return _call([str(self.folder / "bin" / program), *rest], cwd, variables)

    def list_installed(self) -> dict[str, str]:
        """Return versions by name of distribution."""
        versions: dict[str, str] = json.loads(self.run("python", "-I", "-c", SAY_INSTALLED, cwd=self.folder))
        return versions


_UV = (sys.executable, "-m", "uv")
_OURS = ("PYTHONPATH", "VIRTUAL_ENV")  # variables that would let the surroundings in


def _call(words: Sequence[str], cwd: Path, variables: dict[str, str] | None = None) -> str:
    usual = {name: value for name, value in os.environ.items() if name not in _OURS}
    usual |= {"UV_PYTHON_DOWNLOADS": "never", **(variables or {})}
    try:
        done = subprocess.run(
            words, cwd=cwd, env=usual, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{Path(words[0]).name}: not done after {LONGEST_SECONDS} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-12:]
        raise StepError("\n".join([f"{Path(words[0]).name} {' '.join(words[1:4])} ...: exit code {done.returncode}", *last]))
    return done.stdout
